"""The sum of squared weights."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.aggregate import checked_normaliser, magnitude, named_parameters
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion


@CRITERIA.register("l2")
class L2(Criterion):
    r"""Scores a unit by :math:`\sum w^2` over the weights that write and read it.

    The squared norm, without a root, as sites are then averaged energies. Weights are parameters of
    two or more dimensions. Each of a group's sites (the rows of one layer, the columns of another)
    is divided by its mean over units, then sites are averaged [Fang2023depgraph].

    References:
        [Fang2023depgraph] G. Fang et al. DepGraph: Towards Any Structural Pruning. CVPR 2023.
    """

    name = "l2"
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
            group.name: magnitude(group, parameters, power=2, normaliser=self.normaliser)
            for group in network.groups
        }
