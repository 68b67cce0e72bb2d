import pytest
import torch
from torch import nn

from autoprune.testing.networks import INPUT_SHAPE, tiny
from autoprune.tuning.statistics import keep_statistics, own_statistics


@pytest.fixture
def model():
    """A network whose statistics are not those of its inputs, as after reconstruction."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    ).eval()
    for layer in (model[1], model[4]):
        for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
            tensor.uniform_(0.5, 2.0)
    return model


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 8, 8, generator=generator), torch.zeros(n)) for n in (32, 16)]


def test_outputs_stay_and_statistics_become_those_of_the_inputs(model, batches):
    images = torch.cat([inputs for inputs, _ in batches])
    before = model(images)

    assert own_statistics(model, batches) == 2

    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)
    inner = model[:4](images)
    torch.testing.assert_close(model[4].running_mean, inner.mean((0, 2, 3)))
    torch.testing.assert_close(model[4].running_var, inner.var((0, 2, 3)))


def test_training_mode_computes_what_evaluation_did(model, batches):
    images = torch.cat([inputs for inputs, _ in batches])
    before = model(images)
    lost = (model.train()(images) - before).abs().mean()
    model.eval()

    model[1].running_mean.uniform_(0.5, 2.0)  # the pass in training mode moved them
    model[4].running_mean.uniform_(0.5, 2.0)
    before = model(images)
    own_statistics(model, batches)
    kept = (model.train()(images) - before).abs().mean()

    assert lost > 0.1
    assert kept < 1e-3  # the variance is the biased one


def test_layers_that_cannot_take_anything_over_stay(batches):
    model = nn.Sequential(
        nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, track_running_stats=False)
    ).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert own_statistics(model, batches) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_network_without_batchnorm_is_not_run():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    assert own_statistics(model, [(torch.zeros(1, 999), torch.zeros(1))]) == 0


def test_modes_stay(batches):
    model = tiny("residual").model.train()
    own_statistics(model, [(torch.randn(INPUT_SHAPE), torch.zeros(2))])
    assert all(module.training for module in model.modules())


def test_kept_statistics_are_those_of_evaluation(model, batches):
    images, _ = batches[0]
    before, stored = model(images), model[1].running_mean.clone()

    keep_statistics(model.train())

    assert model.training
    assert torch.equal(model(images), before)
    assert torch.equal(model[1].running_mean, stored)


def test_layers_without_stored_statistics_keep_none():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Dropout(0.5)).train()
    keep_statistics(model)
    assert model[0].training
    assert model[1].training
