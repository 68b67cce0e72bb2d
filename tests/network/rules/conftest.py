"""Rules are judged by what they are for: cutting units must equal zeroing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified


class Between(nn.Module):
    """An operation between two layers."""

    def __init__(
        self, before: nn.Module, operation: Callable[[Tensor], Tensor], after: nn.Module
    ) -> None:
        super().__init__()
        self.before, self.operation, self.after = before, operation, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.operation(self.before(x)))


@dataclasses.dataclass(frozen=True)
class Checked:
    """A traced network whose groups were all cut."""

    network: Network

    def places(self, name: str) -> dict[tuple[str, int], list[list[int]]]:
        """Return what the units of a group occupy."""
        (group,) = [group for group in self.network.groups if group.name == name]
        return {(m.path, m.dim): m.indices.tolist() for m in group.members}


@pytest.fixture
def check() -> Callable[..., Checked]:
    """Return a function that traces a network and cuts each of its groups."""

    def checked(model: nn.Module, *inputs: Tensor) -> Checked:
        torch.manual_seed(0)
        model = model.eval()
        traced = trace(model, inputs)
        assert not traced.unsupported
        network = verified(traced)
        assert network.frozen == traced.frozen, "a trial cut found what the rule got wrong"
        surgeon, rng = Surgeon(network), np.random.default_rng(0)
        for group in network.groups:
            kept = rng.choice(group.size, max(group.size // 2, group.least), replace=False)
            plan = PruningPlan({group.name: tuple(sorted(kept.tolist()))})
            with torch.no_grad():
                pruned = surgeon.cut(plan)(*inputs)
                if not group.mixed:
                    masked = surgeon.mask(plan)(*inputs)
                    torch.testing.assert_close(pruned, masked, rtol=1e-4, atol=1e-5)
        return Checked(network)

    return checked


@pytest.fixture
def between(check: Callable[..., Checked]) -> Callable[..., Checked]:
    """Return a function that checks an operation between two layers of eight channels.

    The groups of the first layer are called ``before``. ``after`` is the number of channels that
    the operation returns, or the layer that takes them.
    """

    def checked(
        operation: Callable[[Tensor], Tensor],
        after: int | nn.Module = 8,
        *,
        size: tuple[int, ...] = (8, 8),
    ) -> Checked:
        torch.manual_seed(0)
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
        layer = convolution(after, 4, 1) if isinstance(after, int) else after
        model = Between(convolution(3, 8, 3, padding=1), operation, layer)
        return check(model, torch.randn(2, 3, *size))

    return checked
