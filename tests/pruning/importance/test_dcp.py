from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autoprune.pruning.importance.dcp import DCP
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestDCP(CriterionSuite):
    def build(self):
        return DCP(samples=8)


def opened(model, readers, inputs, targets, discrimination):
    """Return the gradient by the weights of readers from where they read nothing of the group."""
    model = copy.deepcopy(model)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for member in readers:
            keep = torch.ones(model.get_parameter(member.path).shape[1], dtype=torch.bool)
            keep[member.indices.flatten()] = False
            model.get_parameter(member.path)[:, ~keep] = 0
    loss = discrimination * F.cross_entropy(model(inputs), targets)
    for member in readers:
        owner = member.path.rpartition(".")[0]
        heard = []
        hook = dense.get_submodule(owner).register_forward_hook(
            lambda _, args, output, heard=heard: heard.extend([args[0].detach(), output.detach()])
        )
        dense(inputs)
        hook.remove()
        # With the weights of the other groups in place, the error is that of this group alone.
        error = heard[1] - model.get_submodule(owner)(heard[0])
        loss = loss + (error**2).mean() / 2
    loss.backward()
    return {member.path: model.get_parameter(member.path).grad for member in readers}


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
@pytest.mark.parametrize("discrimination", [0.0, 0.7])
def test_equals_the_gradient_of_both_losses_from_no_units_at_all(name, discrimination):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    criterion = DCP(discrimination=discrimination, images=2)
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        readers = [member for member in group.members if member.dim == 1]
        slopes = opened(case.model, readers, inputs, targets, discrimination)
        expected = [
            sum(
                float((slopes[member.path][:, place] ** 2).sum())
                for member in readers
                for place in member.indices[unit]
            )
            for unit in range(group.size)
        ]
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-8, atol=1e-15)


def test_only_the_first_images_count():
    case = tiny("chain")
    (inputs, targets) = case.batches(8)[0]
    first = DCP().score(case.network, [(inputs[:5], targets[:5])])
    in_parts = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
    for group, scores in DCP(samples=5).score(case.network, in_parts).items():
        np.testing.assert_allclose(scores, first[group], rtol=1e-4)
