import pytest
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.tuning.optimiser import build_optimiser, choose_parameters
from autoprune.tuning.settings import TuneSettings


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_biases_and_normalisation_are_not_decayed(model):
    settings = TuneSettings(weight_decay=0.1)
    optimiser = build_optimiser(choose_parameters(model, settings), settings)
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    named = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert named == {
        **{"0.weight": 0.1, "3.weight": 0.1},
        **{"0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.bias": 0.0},
    }


def test_normalisation_alone_is_trained_by_adamw(model):
    settings = TuneSettings(train="normalisation")
    parameters = choose_parameters(model, settings)
    assert list(parameters) == ["0.bias", "1.weight", "1.bias", "3.bias"]
    assert not model[0].weight.requires_grad
    assert isinstance(build_optimiser(parameters, settings), torch.optim.AdamW)
    both = TuneSettings(train="normalisation", optimiser="sgd")
    assert isinstance(build_optimiser(parameters, both), torch.optim.SGD)


def test_nothing_to_train_is_an_error():
    bare = nn.Linear(2, 2, bias=False)
    with pytest.raises(ModelError, match="no parameters to train but weights; take train='all'"):
        choose_parameters(bare, TuneSettings(train="normalisation"))
    with pytest.raises(ModelError, match="no parameters to train"):
        choose_parameters(nn.Identity(), TuneSettings())
