from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from autoprune.pruning.importance.snip import Snip
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestSnip(CriterionSuite):
    def build(self):
        return Snip()


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
    batches = case.batches(3, 2)
    found = Snip(images=2).score(case.network, batches)
    weights = {path: p for path, p in case.model.named_parameters() if p.ndim > 1}
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    slope = slopes(case.model, weights, inputs, targets)
    cut = {member.path for group in case.groups for member in group.members} & weights.keys()
    whole = sum(float((weights[path].detach() * slope[path]).abs().sum()) for path in cut)
    for group in case.groups:
        for unit in range(group.size):
            expected = 0.0
            for member in group.members:
                if member.path in weights:
                    values = entries(weights[member.path].detach(), member, unit)
                    gradients = entries(slope[member.path], member, unit)
                    expected += sum(abs(w * g) for w, g in zip(values, gradients, strict=True))
            assert found[group.name][unit] == pytest.approx(expected / whole, rel=1e-9)
