from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.pruning.importance.obs import StructuredObs
from autoprune.pruning.reads import readers
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import tiny


class TestStructuredObs(CriterionSuite):
    def build(self):
        return StructuredObs()


def _inputs_of(model, owner, batches):
    """Return the inputs of a layer by a forward hook, one row per position."""
    rows = []
    hook = model.get_submodule(owner).register_forward_pre_hook(
        lambda _, args: rows.append(args[0])
    )
    with torch.no_grad():
        for inputs, _ in batches:
            model(inputs)
    hook.remove()
    return torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in rows]).double().numpy()


def _regularised_error(rows, matrix, gone):
    """Return the least squares of losing inputs, by lstsq on rows that carry the ridge."""
    rows = rows - rows.mean(0)
    channels = rows.shape[1]
    ridge = np.sqrt(1e-2 * (rows**2).mean() * len(rows)) * np.eye(channels)
    system = np.concatenate([rows, ridge])
    wanted = system @ matrix.T
    stay = [c for c in range(channels) if c not in gone]
    left = wanted - system[:, stay] @ np.linalg.lstsq(system[:, stay], wanted, rcond=None)[0]
    return (left**2).sum() / ((rows @ matrix.T) ** 2).sum()


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise"])
def test_equals_greedy_least_squares(name):
    """By brute force: at every step the unit whose loss costs all readers least, solved anew."""
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(8, 8)
    scores = StructuredObs().score(case.network, batches)
    compared = 0
    for group in case.groups:
        known = readers(case.network, group)
        problems = []
        for reader in known:
            layer = case.model.get_submodule(reader.owner)
            weight = layer.weight.detach().movedim(1, -1).flatten(0, -2).numpy()
            rows = _inputs_of(case.model, reader.owner, batches)
            problems.append((rows, weight))
            # Nothing here may leave the mean to be seen, or centring would not be right.
            absorbs = isinstance(layer, nn.Linear) or layer.bias is not None
            assert (
                absorbs
                or f"{reader.owner}_norm" in dict(case.model.named_modules())
                or (reader.owner == "conv2")
            )
        gone: list[int] = []
        for _ in range(group.size):
            costs = {
                unit: sum(_regularised_error(*problem, [*gone, unit]) for problem in problems)
                for unit in range(group.size)
                if unit not in gone
            }
            best = min(costs, key=costs.get)
            assert scores[group.name][best] == pytest.approx(costs[best], rel=1e-6)
            gone.append(best)
            compared += 1
        assert all(
            scores[group.name][a] <= scores[group.name][b] for a, b in itertools.pairwise(gone)
        )
    assert compared == sum(group.size for group in case.groups)


def test_says_which_groups_have_no_known_reader():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4))

        def forward(self, x):
            return self.first(x) @ self.weight.T

    from autoprune.network.trace import trace

    network = trace(Own(), torch.randn(2, 3))
    criterion = StructuredObs()
    scores = criterion.score(network, [(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))])
    assert list(criterion.notes) == ["first"]
    assert scores["first"].mean() == pytest.approx(1.0)
