from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autoprune.network.trace import trace
from autoprune.pruning.importance.grasp import Grasp
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestGrasp(CriterionSuite):
    def build(self):
        return Grasp()


def slopes(model, paths, inputs, targets):
    """Return the gradient of the mean loss by some parameters, in plain PyTorch."""
    model = copy.deepcopy(model)
    F.cross_entropy(model(inputs), targets).backward()
    return {path: model.get_parameter(path).grad for path in paths}


def entries(values, member, unit):
    """Return what one unit occupies of a tensor, as a list."""
    return [
        value
        for position in member.indices[unit]
        for value in values.select(member.dim, int(position)).flatten().tolist()
    ]


def cooled(model, temperature):
    """Return a copy with its last layer's logits over the temperature."""
    model = copy.deepcopy(model)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_hook(lambda _, args, output: output / temperature)
    return model


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_finite_difference_of_the_gradient(name):
    """H g is how the gradient changes on the way along itself."""
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    found = Grasp(temperature=2.0, images=2).score(case.network, batches)
    model = cooled(case.model, 2.0)
    cut = {member.path for group in case.groups for member in group.members}
    weights = {path: p for path, p in model.named_parameters() if p.ndim > 1 and path in cut}
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    gradient = slopes(model, weights, inputs, targets)
    moved = []
    for step in (1e-5, -1e-5):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for path in weights:
                other.get_parameter(path).add_(step * gradient[path])
        moved.append(slopes(other, weights, inputs, targets))
    along = {path: (moved[0][path] - moved[1][path]) / 2e-5 for path in weights}
    for group in case.groups:
        expected = np.zeros(group.size)
        for unit in range(group.size):
            for member in group.members:
                if member.path in weights:
                    values = entries(weights[member.path].detach(), member, unit)
                    products = entries(along[member.path], member, unit)
                    expected[unit] += sum(w * h for w, h in zip(values, products, strict=True))
        size = np.abs(expected).max()
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-3, atol=1e-5 * size)


def test_where_the_score_is_high_the_flow_of_the_gradient_falls():
    """To first order, shrinking a weight by a share changes the squared norm by -2 share w Hg."""
    case = tiny("chain", dtype=torch.float64)
    (inputs, targets) = case.batches(6)[0]
    found = Grasp(temperature=1.0).score(case.network, [(inputs, targets)])["conv1"]
    group = case.groups[0]
    cut = {member.path for group in case.groups for member in group.members}
    paths = [path for path, p in case.model.named_parameters() if p.ndim > 1 and path in cut]

    def flow(model):
        return sum(float((g**2).sum()) for g in slopes(model, paths, inputs, targets).values())

    for unit in range(group.size):
        model = copy.deepcopy(case.model)
        with torch.no_grad():
            for member in group.members:
                if member.path in paths:
                    model.get_parameter(member.path).select(member.dim, unit).mul_(1 - 1e-6)
        change = (flow(model) - flow(case.model)) / 1e-6
        assert change == pytest.approx(-2 * found[unit], rel=1e-2, abs=1e-4)


def test_an_empty_unit_is_scored_lowest_and_listed():
    case = tiny("attention")
    with torch.no_grad():
        for parameter in (case.model.widen.weight, case.model.widen.bias):
            parameter[3].zero_()
        case.model.narrow.weight[:, 3] = 0
    criterion = Grasp()
    scores = criterion.score(case.network, case.batches(4))["widen"]
    assert scores[3] == scores.min() < 0
    assert criterion.notes == {"widen": "1 units are zero already; scored lowest"}


class Gated(torch.nn.Module):
    """A hard sigmoid, which PyTorch can differentiate only once."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(192, 6)
        self.second = torch.nn.Linear(6, 5)

    def forward(self, images):
        return self.second(torch.nn.functional.hardsigmoid(self.first(images.flatten(1))))


def test_without_second_derivatives_differences_are_taken_and_listed():
    case = tiny("chain", dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gated().double().eval()
    network = trace(model, case.inputs)
    (inputs, targets) = case.batches(4)[0]
    criterion = Grasp(temperature=1.0)
    found = criterion.score(network, [(inputs, targets)])["first"]
    assert criterion.notes["first"].startswith("an operator has no second derivative")
    paths = ["first.weight", "second.weight"]
    gradient = slopes(model, paths, inputs, targets)
    moved = []
    for step in (1e-6, -1e-6):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for path in paths:
                other.get_parameter(path).add_(step * gradient[path])
        moved.append(slopes(other, paths, inputs, targets))
    effect = {
        path: model.get_parameter(path).detach() * (moved[0][path] - moved[1][path]) / 2e-6
        for path in paths
    }
    expected = effect["first.weight"].sum(1) + effect["second.weight"].sum(0)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4)
