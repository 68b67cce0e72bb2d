"""What the criteria that look at weights alone have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from autoprune.network.groups import ChannelGroup
from autoprune.network.network import Network
from autoprune.pruning.aggregate import checked_normaliser, magnitude, named_parameters
from autoprune.pruning.criterion import Batches, Criterion, Family, Needs


class Magnitude(Criterion):
    r"""Scores a unit by :math:`\sum |w|^p` over the weights that write and read it.

    Weights are parameters of two or more dimensions. Each of a group's sites (rows of one layer,
    columns of another) is divided by its mean over units, then sites are averaged.

    Attributes:
        power: The exponent p.
    """

    needs: ClassVar[Needs] = "nothing"
    family: ClassVar[Family] = "weight-dependent"
    power: ClassVar[int] = 2

    def __init__(self, *, normaliser: str = "mean") -> None:
        """Store parameters.

        Args:
            normaliser: What each site is divided by, a name in ``aggregate.NORMALISERS``.
        """
        self.normaliser = checked_normaliser(normaliser)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        return self.magnitudes(network, network.groups)

    def magnitudes(
        self, network: Network, groups: Sequence[ChannelGroup]
    ) -> dict[str, Float[np.ndarray, " units"]]:
        """Return the magnitude of every unit of ``groups``, by group name."""
        parameters = named_parameters(network.model)
        return {
            group.name: magnitude(group, parameters, power=self.power, normaliser=self.normaliser)
            for group in groups
        }
