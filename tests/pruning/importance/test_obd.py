from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from autoprune.pruning.importance.obd import OBD
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestOBD(CriterionSuite):
    def build(self):
        return OBD()


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


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(2, 1)
    found = OBD().score(case.network, batches)
    parameters = dict(case.model.named_parameters())
    images = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    each = [slopes(case.model, parameters, *image) for image in images]
    for group in case.groups:
        for unit in range(group.size):
            expected = 0.0
            for member in group.members:
                if member.path not in parameters:
                    continue
                weights = entries(parameters[member.path].detach(), member, unit)
                by_image = [entries(slope[member.path], member, unit) for slope in each]
                for w, *gradients in zip(weights, *by_image, strict=True):
                    expected += 0.5 * w * w * sum(g * g for g in gradients) / len(gradients)
            assert found[group.name][unit] == pytest.approx(expected, rel=1e-9)


def test_with_more_images_per_gradient_they_cancel():
    case = tiny("chain")
    batches = case.batches(8)
    one, many = (OBD(images=n).score(case.network, batches)["conv1"] for n in (1, 8))
    assert many.sum() < one.sum()
