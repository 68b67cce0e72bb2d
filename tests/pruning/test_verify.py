"""Verification finds what tracing cannot know."""

from __future__ import annotations

import torch
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.verify import verified


class _CountsChannels(nn.Module):
    """Multiplies by the number of channels it finds: runs when cut, but gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.c(torch.relu(self.b(y * y.shape[1])))


def test_a_group_that_runs_but_differs_is_frozen_and_the_others_stay() -> None:
    network = verified(trace(_CountsChannels(), (torch.randn(1, 3, 4, 4),)))
    assert [group.name for group in network.groups] == ["b"]
    assert network.frozen["a"].startswith("cutting differs from zeroing by")
    assert network.ops.group_sizes == (8,)


class _Tiny(nn.Module):
    """A branch scaled so small that its channels hardly show in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.inner = nn.Conv2d(6, 8, 1)
        self.outer = nn.Conv2d(8, 6, 1)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        hidden = self.inner(x)
        return self.head(x + self.scale * self.outer(hidden * hidden.shape[1]))


def test_a_small_layer_scale_hides_no_fault() -> None:
    network = verified(trace(_Tiny(), (torch.randn(1, 3, 4, 4),)))
    assert "inner" in network.frozen
    assert [group.name for group in network.groups] == ["stem"]


class _OnlyWhole(nn.Module):
    """A residual block that cannot be the identity: the caller reads an attribute of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.gain = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class _Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), _OnlyWhole(), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(x)) * self.block.gain)


def test_a_block_that_cannot_go_is_frozen() -> None:
    network = verified(trace(_Reader(), (torch.randn(1, 3, 4, 4),)))
    assert network.blocks == ()
    assert "'Identity' object has no attribute 'gain'" in network.frozen["block block"]


class _Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)))


def test_a_group_that_a_norm_mixes_is_marked_and_kept() -> None:
    (group,) = verified(trace(_Normalised(), (torch.randn(3, 4),))).groups
    assert group.mixed
    assert group.size == 8
