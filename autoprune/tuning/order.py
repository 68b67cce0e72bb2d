"""Which training samples each step sees, and all that is random in it, from seed and step alone.

Nothing is drawn one after the other, so a fine-tuning that is continued needs no generator's state.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


class SampleOrder:
    """Batches of positions: every epoch visits the samples in an order of its own.

    What is left over at the end of an epoch and fills no batch is not used in that epoch.

    Attributes:
        batch: Samples per step, all of them where there are fewer.
        per_epoch: Steps of an epoch.
    """

    def __init__(self, samples: int, batch: int, *, seed: int) -> None:
        """Store parameters.

        Args:
            samples: How many samples there are.
            batch: Samples per step.
            seed: Determines the order.
        """
        self.samples, self.seed = samples, seed
        self.batch = min(batch, samples)
        self.per_epoch = samples // self.batch
        self._known: tuple[int, Int[np.ndarray, " samples"]] | None = None

    def positions(self, step: int) -> Int[np.ndarray, " batch"]:
        """Return the samples of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        if self._known is None or self._known[0] != epoch:
            self._known = epoch, _rng(self.seed, 0, epoch).permutation(self.samples)
        return self._known[1][place * self.batch : (place + 1) * self.batch]


def augmentation_rng(seed: int, step: int, rank: int) -> np.random.Generator:
    """Return what augments the samples of a step, in one of several processes."""
    return _rng(seed, 1, step, rank)


def torch_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of what a network draws in a step (dropout)."""
    return int(_rng(seed, 2, step, rank).integers(2**62))


def _rng(seed: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, *purpose))
