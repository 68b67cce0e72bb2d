"""The sum of absolute weights."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.aggregate import checked_normaliser, magnitude, named_parameters
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion


@CRITERIA.register("l1")
class L1(Criterion):
    r"""Scores a unit by :math:`\sum |w|` over the weights that write and read it [Li2017pfec].

    Weights are parameters of two or more dimensions. Each of a group's sites (the rows of one
    layer, the columns of another) is divided by its mean over units, then sites are averaged.

    References:
        [Li2017pfec] H. Li et al. Pruning Filters for Efficient ConvNets. ICLR 2017.
    """

    name = "l1"
    needs = "nothing"
    family = "weight-dependent"

    def __init__(self, *, normaliser: str = "mean") -> None:
        """Store parameters.

        Args:
            normaliser: What each site is divided by, a name in ``aggregate.NORMALISERS``.
        """
        self.normaliser = checked_normaliser(normaliser)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        parameters = named_parameters(network.model)
        return {
            group.name: magnitude(group, parameters, power=1, normaliser=self.normaliser)
            for group in network.groups
        }
