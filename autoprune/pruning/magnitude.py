"""The magnitude of weights: a criterion of its own, and what others fall back on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from autoprune.network.groups import ChannelGroup
from autoprune.network.network import Network
from autoprune.pruning.aggregate import (
    checked_normaliser,
    checked_reducer,
    magnitude,
    named_parameters,
)
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

    def __init__(self, *, normaliser: str = "mean", reduce: str = "mean") -> None:
        """Store parameters.

        Args:
            normaliser: How the scores of each site are scaled, a name in ``aggregate.NORMALISERS``.
            reduce: How sites become one, a name in ``aggregate.REDUCERS``.
        """
        self.normaliser = checked_normaliser(normaliser)
        self.reduce = checked_reducer(reduce)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        return self.magnitudes(network, network.groups)

    def magnitudes(
        self, network: Network, groups: Sequence[ChannelGroup]
    ) -> dict[str, Float[np.ndarray, " units"]]:
        """Return the magnitude of every unit of ``groups``, by group name."""
        parameters = named_parameters(network.model)
        return {
            group.name: magnitude(
                group,
                parameters,
                power=self.power,
                normaliser=self.normaliser,
                reduce=self.reduce,
            )
            for group in groups
        }


def or_magnitude(
    network: Network,
    found: Mapping[str, Float[np.ndarray, " units"] | str],
    *,
    normaliser: str = "mean",
    reduce: str = "mean",
) -> tuple[dict[str, Float[np.ndarray, " units"]], dict[str, str]]:
    """Return scores with the L2 magnitude wherever a reason stands for them, and the notes on it.

    Args:
        network: Whose groups are scored.
        found: For each group by name its scores, or why a formula does not apply to it.
        normaliser: Of the magnitude's sites, a name in ``aggregate.NORMALISERS``.
        reduce: Likewise, a name in ``aggregate.REDUCERS``.
    """
    parameters = named_parameters(network.model)
    scores, notes = {}, {}
    for group in network.groups:
        score = found[group.name]
        if isinstance(score, str):
            notes[group.name] = f"{score}; scored by L2 magnitude"
            score = magnitude(group, parameters, power=2, normaliser=normaliser, reduce=reduce)
        scores[group.name] = score
    return scores, notes
