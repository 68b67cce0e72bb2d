"""The sum of absolute weights."""

from __future__ import annotations

from autoprune.pruning.criterion import CRITERIA
from autoprune.pruning.magnitude import Magnitude


@CRITERIA.register("l1")
class L1(Magnitude):
    r"""Scores a unit by :math:`\sum |w|` over the weights that write and read it [Li2017pfec].

    References:
        [Li2017pfec] H. Li et al. Pruning Filters for Efficient ConvNets. ICLR 2017.
    """

    name = "l1"
    power = 1
