from __future__ import annotations

import itertools

import pytest
import torch

from autoprune.pruning.contributions import contribution_moments
from autoprune.pruning.importance.thinet import ThiNet
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestThiNet(CriterionSuite):
    def build(self):
        return ThiNet(samples=16)


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name)
    batches = case.batches(3, 2)
    criterion = ThiNet(samples=20, seed=3)
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    moments = contribution_moments(case.network, batches, samples=20, seed=3)
    for group in case.groups:
        moment = moments[group.name]
        silent = [unit for unit in range(group.size) if moment[unit, unit] == 0]
        removed, left = list(silent), set(range(group.size)) - set(silent)
        for turn in range(len(silent), group.size):
            unit = min(
                left,
                key=lambda unit: sum(
                    moment[i, j] for i, j in itertools.product([*removed, unit], repeat=2)
                ),
            )
            assert found[group.name][unit] == turn
            removed.append(unit)
            left.remove(unit)
        assert (found[group.name][silent] == 0).all()


def test_copies_of_a_unit_with_opposite_signs_go_one_after_the_other():
    """What they give to the next layer cancels, so that with the first the second costs nothing."""
    case = tiny("flatten")
    with torch.no_grad():
        for parameter in (case.model.hidden.weight, case.model.hidden.bias):
            parameter[3].copy_(parameter[4])
        case.model.output.weight[:, 3] = -case.model.output.weight[:, 4]
    scores = ThiNet().score(case.network, case.batches(6))["hidden"]
    assert abs(scores[3] - scores[4]) == 1
