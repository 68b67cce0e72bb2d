from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from autoprune.pruning.importance.fpgm import FPGM
from autoprune.pruning.importance.l2 import L2
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestFPGM(CriterionSuite):
    def build(self):
        return FPGM()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name, dtype=torch.float64)
    weights = {path: p.detach() for path, p in case.model.named_parameters() if p.ndim > 1}
    criterion = FPGM()
    found = criterion.score(case.network)
    for group in case.groups:
        if group.size == 2:
            continue
        expected = np.zeros(group.size)
        sites = [member for member in group.members if member.path in weights]
        for member in sites:
            rows = [
                [
                    w
                    for position in unit
                    for w in weights[member.path].select(member.dim, position).flatten().tolist()
                ]
                for unit in member.indices.tolist()
            ]
            distances = [
                sum(
                    sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
                    for other in rows
                )
                for one in rows
            ]
            expected += np.array(distances) * group.size / sum(distances) / len(sites)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-9)


def test_two_units_are_scored_by_l2_and_listed():
    case = tiny("grouped")
    criterion = FPGM()
    found = criterion.score(case.network)
    np.testing.assert_array_equal(found["conv1"], L2().score(case.network)["conv1"])
    assert list(criterion.notes) == ["conv1"]
    assert criterion.notes["conv1"].endswith("scored by L2 magnitude")


def test_an_empty_unit_far_from_the_others_still_goes_first():
    case = tiny("chain")
    group = case.groups[1]
    with torch.no_grad():
        # All others are nearly the same, so the empty one is farthest from the median.
        for member in group.members[:1] + group.members[-1:]:
            weight = case.model.get_parameter(member.path)
            first = weight.select(member.dim, 0).clone()
            for unit in range(group.size):
                weight.select(member.dim, unit).copy_((1 + 0.01 * unit) * first if unit < 5 else 0)
    criterion = FPGM()
    found = criterion.score(dataclasses.replace(case.network, groups=(group,)))["conv2"]
    assert found[5] == 0
    assert (found[:5] > 0).all()
    assert criterion.notes == {"conv2": "1 units are zero already; scored zero"}
