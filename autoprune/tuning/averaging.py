"""A moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn

from autoprune.network.copies import deep_copy


class MovingAverage:
    """Keeps a network whose parameters and buffers are averages over the last steps of another.

    The decay rises with the steps, ``min(decay, (1 + step) / (10 + step))``, so that a short
    training is not dominated by where it began.

    Attributes:
        model: The averaged network.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with a copy of ``model``.

        Args:
            model: The network that is trained.
            decay: Share of the average that stays at each step, at most.
        """
        self.model = deep_copy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the network as it is after a step, counted from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for average, latest in zip(
            [*self.model.parameters(), *self.model.buffers()],
            [*model.parameters(), *model.buffers()],
            strict=True,
        ):
            if average.is_floating_point():
                average.lerp_(latest, share)
            else:
                average.copy_(latest)
