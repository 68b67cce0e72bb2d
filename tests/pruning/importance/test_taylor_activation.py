from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autoprune.pruning.importance.taylor_activation import TaylorActivation
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestTaylorActivation(CriterionSuite):
    def build(self):
        return TaylorActivation(images=4)


def gate_gradients(model, members, units, batch):
    """Return for every image and unit the finite difference of its loss by a gate at members."""
    rows = np.zeros((len(batch[0]), units))
    for unit in range(units):
        losses = []
        for gate in (1 + 1e-6, 1 - 1e-6):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for member in members:
                    weight = moved.get_parameter(member.path)
                    for position in member.indices[unit]:
                        weight.select(member.dim, int(position)).mul_(gate)
                losses.append(F.cross_entropy(moved(batch[0]), batch[1], reduction="none"))
        rows[:, unit] = ((losses[0] - losses[1]) / 2e-6).numpy()
    return rows


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_images_and_readers(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    criterion = TaylorActivation()
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        readers = [member for member in group.members if member.dim == 1]
        expected = np.zeros(group.size)
        for reader in readers:
            rows = np.concatenate(
                [gate_gradients(case.model, [reader], group.size, batch) for batch in batches]
            )
            site = np.abs(rows).mean(0)
            expected += site / (site**2).sum() ** 0.5 / len(readers)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-3, atol=1e-7)


def test_is_the_mean_of_activation_times_gradient():
    """The paper's own way, on what the second convolution reads."""
    case = tiny("chain", dtype=torch.float64)
    (images, targets) = case.batches(5)[0]
    maps = case.model.relu1(case.model.norm1(case.model.conv1(images))).detach().requires_grad_()
    logits = case.model.head(case.model.relu2(case.model.norm2(case.model.conv2(maps))))
    (slopes,) = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), maps)
    expected = (maps * slopes).mean((2, 3)).abs().mean(0).detach()
    expected /= expected.norm()
    found = TaylorActivation().score(case.network, [(images, targets)])["conv1"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
