"""Verification finds what tracing cannot know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon, replay
from autoprune.pruning.trial import Trial
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
    assert "'Skip' object has no attribute 'gain'" in network.frozen["block block"]


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


class _FixedHeads(nn.Module):
    """Attention that keeps its number of heads and its total width as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.dim = 4, 6, 24
        self.projection = nn.Linear(24, 72)
        self.out = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        qkv = self.projection(x).reshape(n, t, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(n, t, self.dim))


def test_attributes_that_mirror_a_width_follow_it_and_travel_in_the_plan() -> None:
    model = nn.Sequential(nn.Linear(5, 24), _FixedHeads(), nn.Linear(24, 3)).eval()
    x = torch.randn(2, 7, 5)
    network = verified(trace(model, (x,)))
    heads = next(group for group in network.groups if group.name == "1.projection")
    assert heads.size == 4
    assert {m.attribute: m.per_unit for m in heads.mirrors} == {"1.num_heads": 1, "1.dim": 6}

    surgeon = Surgeon(network)
    plan = PruningPlan({"1.projection": (0, 2, 3)})
    pruned = surgeon.cut(plan)
    assert (pruned[1].num_heads, pruned[1].head_dim, pruned[1].dim) == (3, 6, 18)
    assert (model[1].num_heads, model[1].dim) == (4, 24)
    torch.testing.assert_close(pruned(x), surgeon.mask(plan)(x), rtol=1e-4, atol=1e-5)

    stored = PruningPlan.from_json(surgeon.complete(plan).to_json())
    assert stored.attributes == {"1.num_heads": 3, "1.dim": 18}
    fresh = nn.Sequential(nn.Linear(5, 24), _FixedHeads(), nn.Linear(24, 3)).eval()
    again = replay(fresh, (x,), stored)
    again.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(again(x), pruned(x))


def test_a_plan_cannot_set_what_is_no_number_of_the_network() -> None:
    network = trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (torch.randn(1, 3),))
    for attribute in ("0.weight", "0.nobody", "0.training", "9.in_features", "forward"):
        with pytest.raises(PruningError, match="no whole number"):
            Surgeon(network).cut(PruningPlan({}, (), {attribute: 1}))


class _FullBatches(nn.Module):
    """Insists on the batch it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x))).reshape(6, 2)


def test_a_trial_takes_two_samples_where_the_model_does() -> None:
    plain = trace(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(6, 4))
    assert [len(x) for x in Trial(plain, seed=0)._inputs] == [2]
    insisting = trace(_FullBatches(), torch.randn(6, 4))
    assert [len(x) for x in Trial(insisting, seed=0)._inputs] == [6]
    assert [group.size for group in verified(insisting).groups] == [8]
