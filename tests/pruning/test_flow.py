from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.pruning.flow import absolute_model, linear_pass, ones_like, outputs_of
from autoprune.testing.networks import tiny


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.RMSNorm(4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_normalisations_only_scale_and_shift(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.arange(1.0, 5.0))
    last = isinstance(layer, (nn.LayerNorm, nn.RMSNorm))
    values = torch.randn(2, 3, 3, 4) if last else torch.randn(2, 4, 3, 3)
    shape = (4,) if last else (4, 1, 1)
    scale = torch.arange(1.0, 5.0).reshape(shape)
    expected = values * scale + (0 if isinstance(layer, nn.RMSNorm) else scale)
    with linear_pass(layer):
        found = layer(values)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(layer(values), expected)


@pytest.mark.parametrize(
    "function",
    [
        F.relu6,
        nn.ReLU6(),
        nn.Hardtanh(),
        nn.Tanh(),
        torch.tanh,
        nn.LocalResponseNorm(2),
        lambda x: x.clamp(0, 1),
        lambda x: torch.clamp(x, max=1),
        lambda x: F.hardtanh(input=x),
    ],
)
def test_what_is_bounded_passes_on(function):
    values = 10 + torch.rand(2, 4, 3, 3)
    with linear_pass(nn.Identity()):
        assert torch.equal(function(values), values)
    assert not torch.equal(function(values), values)


@pytest.mark.parametrize("name", ["residual", "depthwise", "grouped"])
def test_a_sum_of_inputs_is_a_sum_of_outputs(name):
    """But for the shifts the network is linear on positive inputs."""
    model = absolute_model(tiny(name).network)
    one, other = torch.rand(2, 1, 3, 8, 8, dtype=torch.float64)
    with linear_pass(model), torch.no_grad():
        nothing = model(0 * one)
        together = model(one + other) - nothing
        apart = model(one) + model(other) - 2 * nothing
    torch.testing.assert_close(together, apart)


def test_the_users_model_keeps_its_signs():
    case = tiny("chain")
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    model = absolute_model(case.network)
    assert all(bool((parameter >= 0).all()) for parameter in model.parameters())
    assert all(parameter.dtype == torch.float64 for parameter in model.parameters())
    for name, value in case.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_whole_numbers_stay_and_others_are_ones():
    inputs = {"ids": torch.tensor([3, 5]), "mask": torch.tensor([0.0, 2.0]), "flag": True}
    found = ones_like(inputs)
    assert found["ids"].tolist() == [3, 5]
    assert found["mask"].tolist() == [1.0, 1.0]
    assert found["mask"].dtype == torch.float64
    assert found["flag"] is True
    assert [t.tolist() for t in outputs_of((torch.tensor([1]), [torch.tensor([0.5])]))] == [[0.5]]
