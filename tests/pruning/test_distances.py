"""How far answers move where a part is gone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.distances import SAMPLES, answer_distances
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS


class _Residual(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.weight, factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv(x)).relu()


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.a, self.b = _Residual(), _Residual(0.0)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.b(self.a(self.stem(x)))).relu().mean((2, 3)))


NOTHING = PruningPlan({})
WITHOUT = [PruningPlan({}, (name,)) for name in ("a", "b")]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return trace(_Net().eval(), torch.randn(2, 3, 6, 6))


def test_distance_is_that_of_the_answers_of_other_samples_than_repair(network) -> None:
    inputs = torch.randn(40, 3, 6, 6)
    before = copy.deepcopy(network.model.state_dict())
    batches = [(inputs[:30], torch.zeros(30)), (inputs[30:], torch.ones(10))]
    found = answer_distances(network, batches, WITHOUT, realise="statistics")

    without = copy.deepcopy(network.model)
    without.a = nn.Identity()
    for norm in (without.b.norm, without.norm):
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    whole = copy.deepcopy(network.model)
    for norm in (whole.a.norm, whole.b.norm, whole.norm):
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        without(inputs[:20])
        whole(inputs[:20])
        z = whole.eval()(inputs[20:])
        moved = without.eval()(inputs[20:]) - z
    expected = (moved.square().sum() / (z - z.mean(0)).square().sum()).sqrt()
    assert found[0] == pytest.approx(float(expected), rel=1e-4)
    assert found[1] == pytest.approx(0.0, abs=1e-5)  # it adds nothing
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("realise", REALISERS.names())
def test_every_repair_is_measured(network, realise) -> None:
    group = max(network.groups, key=lambda group: group.size)
    half = PruningPlan({group.name: tuple(range(group.size // 2))})
    batches = [(torch.randn(64, 3, 6, 6), torch.zeros(64))]
    nothing, some, block = answer_distances(
        network, batches, [NOTHING, half, WITHOUT[0]], realise=realise
    )
    assert nothing == 0.0
    assert min(some, block) > 0.01


def test_only_the_first_samples_count(network) -> None:
    count = 2 * SAMPLES
    inputs, labels = torch.randn(count + 8, 3, 6, 6), torch.zeros(count + 8)
    everything = answer_distances(network, [(inputs, labels)], WITHOUT, realise="slice")
    first = answer_distances(network, [(inputs[:count], labels[:count])], WITHOUT, realise="slice")
    assert everything == first


def test_a_single_sample_repairs_and_measures(network) -> None:
    batches = [(torch.randn(1, 3, 6, 6), torch.zeros(1))]
    heard: list[int] = []
    found = answer_distances(network, batches, WITHOUT, realise="slice", listener=heard.append)
    assert len(found) == 2
    assert heard == [1, 2]


def test_answers_that_are_all_alike_have_no_distance(network) -> None:
    nn.init.zeros_(network.model.head.weight)
    batches = [(torch.randn(8, 3, 6, 6), torch.zeros(8))]
    assert answer_distances(network, batches, WITHOUT, realise="slice") == [0.0, 0.0]
