"""The sum of squared weights."""

from __future__ import annotations

from autoprune.pruning.criterion import CRITERIA
from autoprune.pruning.magnitude import Magnitude


@CRITERIA.register("l2")
class L2(Magnitude):
    r"""Scores a unit by :math:`\sum w^2` over the weights that write and read it.

    The squared norm, without a root, as sites are then averaged energies [Fang2023depgraph].

    References:
        [Fang2023depgraph] G. Fang et al. DepGraph: Towards Any Structural Pruning. CVPR 2023.
    """

    name = "l2"
    power = 2
