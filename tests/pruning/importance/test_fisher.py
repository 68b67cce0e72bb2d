from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.greedy import removal_order
from autoprune.pruning.importance.fisher import Fisher
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestFisher(CriterionSuite):
    def build(self):
        return Fisher()


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
def test_equals_a_loop_over_images_and_gates(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    criterion = Fisher(images=2)
    found = criterion.score(case.network, batches)
    matrices = criterion.matrices(case.network, batches)
    joint = Fisher(joint=True).score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        readers = [member for member in group.members if member.dim == 1]
        rows = np.concatenate(
            [gate_gradients(case.model, readers, group.size, batch) for batch in batches]
        )
        matrix = sum(np.outer(row, row) for row in rows) / len(rows)
        np.testing.assert_allclose(matrices[group.name], matrix, rtol=1e-3, atol=1e-8)
        np.testing.assert_allclose(found[group.name], np.diagonal(matrix) / 2, rtol=1e-3, atol=1e-8)
        np.testing.assert_array_equal(joint[group.name], removal_order(matrices[group.name]))


def test_gradients_that_cancel_over_images_still_count():
    """The mean gradient of an image and its opposite label is near zero, their squares are not."""
    case = tiny("chain", dtype=torch.float64)
    image = case.batches(1)[0][0]
    every = (image.expand(5, -1, -1, -1), torch.arange(5))
    alone = [(image, torch.tensor([label])) for label in range(5)]
    together = Fisher(images=5).score(case.network, [every])
    apart = Fisher().score(case.network, alone)
    for group, scores in apart.items():
        np.testing.assert_allclose(together[group], scores, rtol=1e-9)


class Plain(nn.Module):
    """A product with a bare parameter, whose role no module type tells."""

    def __init__(self):
        super().__init__()
        self.write = nn.Linear(192, 3)
        self.read = nn.Parameter(torch.randn(3, 5))

    def forward(self, images):
        return self.write(images.flatten(1)).relu() @ self.read


@pytest.mark.parametrize("joint", [False, True])
def test_where_a_reader_is_unknown_the_gate_is_on_all_and_the_group_is_listed(joint):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Plain().double().eval()
    case = tiny("chain", dtype=torch.float64)
    network = trace(model, case.inputs)
    (group,) = network.groups
    batch = case.batches(4)[0]
    criterion = Fisher(joint=joint)
    found = criterion.score(network, [batch])[group.name]
    assert criterion.notes[group.name].startswith("not all readers are known")
    rows = gate_gradients(model, group.members, group.size, batch)
    matrix = rows.T @ rows / len(rows)
    expected = removal_order(matrix) if joint else np.diagonal(matrix) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)
