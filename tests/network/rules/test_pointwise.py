from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = [
    *(nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU),
    *(nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.CELU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Dropout),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_passes_channels(between, activation):
    places = between(activation()).places("before")
    assert places["after.weight", 1] == [[i] for i in range(8)]


COMBINED = {
    "lerp": lambda x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.tanh(), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.exp()),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "in place": lambda x: x.clone().mul_(2).add_(x).clamp_(-1, 1),
    "into a view": lambda x: x.flatten(2).clone().view_as(x).relu_(),
    "polar": lambda x: torch.polar(x.abs(), x).abs(),
}


@pytest.mark.parametrize("name", COMBINED)
def test_operands_that_meet_are_coupled(between, name):
    assert ("after.weight", 1) in between(COMBINED[name]).places("before")


def test_a_gate_goes_with_what_it_gates(between):
    places = between(lambda x: F.glu(x, 1), 4).places("before")
    assert places["before.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_the_coordinates_of_a_cross_product_stay(between):
    def operation(x: torch.Tensor) -> torch.Tensor:
        y = x.unflatten(2, (-1, 4))[:, :, :, :3]
        return torch.linalg.cross(y, y.flip(4), dim=3).flatten(2, 3)

    assert ("after.weight", 1) in between(operation).places("before")
    network = between(lambda x: torch.linalg.cross(x[:, :3], x[:, 3:6], dim=1), 3).network
    assert "before" in network.frozen
