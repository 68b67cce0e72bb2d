"""How far answers move without a block."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.blocks import SAMPLES, block_distances


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


def test_distance_is_that_of_the_answers_with_repaired_statistics() -> None:
    torch.manual_seed(0)
    network = trace(_Net().eval(), torch.randn(2, 3, 6, 6))
    inputs = torch.randn(40, 3, 6, 6)
    before = copy.deepcopy(network.model.state_dict())
    found = block_distances(
        network, [(inputs[:30], torch.zeros(30)), (inputs[30:], torch.ones(10))]
    )

    without = copy.deepcopy(network.model)
    without.a = nn.Identity()
    without.norm.reset_running_stats()
    without.norm.momentum = 1.0
    without.norm.train()
    with torch.no_grad():
        without(inputs)
        z, moved = network.model(inputs), without.eval()(inputs) - network.model(inputs)
    expected = (moved.square().sum() / (z - z.mean(0)).square().sum()).sqrt()
    assert found["a"] == pytest.approx(float(expected), rel=1e-4)
    # A block that adds nothing changes nothing, but the norm behind it now fits the data.
    assert found.keys() == {"a", "b"}
    assert found["b"] < found["a"]
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_only_the_first_samples_count() -> None:
    torch.manual_seed(0)
    network = trace(_Net().eval(), torch.randn(2, 3, 6, 6))
    inputs, labels = torch.randn(SAMPLES + 8, 3, 6, 6), torch.zeros(SAMPLES + 8)
    all_of_them = block_distances(network, [(inputs, labels)])
    first = block_distances(network, [(inputs[:SAMPLES], labels[:SAMPLES])])
    assert all_of_them == first


def test_answers_that_are_all_alike_have_no_distance() -> None:
    torch.manual_seed(0)
    network = trace(_Net().eval(), torch.randn(2, 3, 6, 6))
    nn.init.zeros_(network.model.head.weight)
    found = block_distances(network, [(torch.randn(8, 3, 6, 6), torch.zeros(8))])
    assert found == {"a": 0.0, "b": 0.0}
