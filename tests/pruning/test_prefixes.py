from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.prefixes import Prefixes, States


class Two(nn.Module):
    """A chain, and a block in it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.BatchNorm1d(4)
        self.block = Inner()

    def forward(self, x):
        x = self.norm(self.second(self.first(x).relu())).relu()
        return self.third(self.block(x))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


PATHS = ["first.weight", "second.weight", "block.up.weight", "block.down.weight", "third.weight"]
ORDER = ["first.weight", "second.weight", "norm", *PATHS[2:]]


@pytest.fixture
def prefixes():
    torch.manual_seed(0)
    return Prefixes(trace(Two().eval(), torch.randn(2, 4)), PATHS)


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({}, 6),
        ({"kept": {"first": (0, 1)}}, 0),  # its rows are there from the first operator on
        ({"kept": {"second": (0, 1)}}, 1),
        ({"kept": {"block.up": (0, 1)}}, 3),
        ({"dropped": ("block",)}, 3),
        ({"attributes": {"block.up.out_features": 3}}, 0),  # no such mirror: always told
        ({"kept": {"block.up": tuple(range(6))}}, 6),  # all of a group is as much as no word
    ],
)
def test_plans_share_what_runs_before_they_differ(prefixes, change, shared):
    base = PruningPlan({})
    plan = dataclasses.replace(base, **change)
    one, other = prefixes.keys(base), prefixes.keys(plan)
    assert list(one) == ORDER
    agreeing = [path for path in ORDER if one[path] == other[path]]
    assert agreeing == ORDER[:shared]


def test_every_different_value_has_a_key_of_its_own(prefixes):
    plans = [PruningPlan({"block.up": kept}) for kept in ((0,), (1,), (0, 1), (0, 1, 2))]
    keys = [prefixes.keys(plan) for plan in plans]
    assert len({key["block.up.weight"] for key in keys}) == 4
    assert len({key["norm"] for key in keys}) == 1


def test_the_least_recently_used_goes_first():
    states = States(3 * 40)
    for name in "abc":
        states.put(name, b"key", ({"weight": torch.zeros(10)},))
    assert states.get("a", b"key") is not None
    assert states.get("a", b"other") is None
    states.put("d", b"key", ({"weight": torch.zeros(10)},))
    assert states.get("b", b"key") is None
    assert all(states.get(name, b"key") is not None for name in "acd")
    states.put("d", b"key", ({"weight": torch.ones(10)},))  # is there already
    assert not states.get("d", b"key")[0]["weight"].any()
