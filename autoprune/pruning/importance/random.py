"""Chance, the baseline every other criterion has to beat."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion


@CRITERIA.register("random")
class Random(Criterion):
    """Scores every unit by a number drawn uniformly from [0, 1)."""

    name = "random"
    needs = "nothing"
    family = "baseline"
    informed = False

    def __init__(self, *, seed: int = 0) -> None:
        """Store parameters.

        Args:
            seed: Starts the generator anew at each call, so that equal calls give equal scores.
        """
        self.seed = seed

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        generator = np.random.default_rng(self.seed)
        return {group.name: generator.random(group.size) for group in network.groups}
