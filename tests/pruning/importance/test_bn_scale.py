from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.pruning.importance.bn_scale import BatchNormScale
from autoprune.pruning.importance.l2 import L2
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestBatchNormScale(CriterionSuite):
    def build(self):
        return BatchNormScale()


@pytest.mark.parametrize("name", sorted(set(TINY_NETWORKS) - {"attention", "flatten"}))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name)
    scales = {
        f"{path}.weight": module.weight.tolist()
        for path, module in case.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    criterion = BatchNormScale()
    found = criterion.score(case.network)
    assert criterion.notes == {}
    for group in case.groups:
        expected = np.zeros(group.size)
        sites = [member for member in group.members if member.path in scales]
        for member in sites:
            site = [sum(abs(scales[member.path][i]) for i in unit) for unit in member.indices]
            for unit, score in enumerate(site):
                expected[unit] += score * group.size / sum(site) / len(sites)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_a_group_without_batchnorm_is_scored_by_l2_and_listed():
    case = tiny("flatten")
    criterion = BatchNormScale()
    found = criterion.score(case.network)
    np.testing.assert_array_equal(found["hidden"], L2().score(case.network)["hidden"])
    assert criterion.notes == {"hidden": "passes no BatchNorm with a scale; scored by L2 magnitude"}
    assert not np.allclose(found["conv"], L2().score(case.network)["conv"])


def test_batchnorm_without_affine_parameters_has_no_scale():
    case = tiny("chain")
    with torch.random.fork_rng(devices=[]):
        case.model.norm1 = nn.BatchNorm2d(8, affine=False)
    members = tuple(m for m in case.groups[0].members if not m.path.startswith("norm1"))
    groups = (dataclasses.replace(case.groups[0], members=members), case.groups[1])
    criterion = BatchNormScale()
    criterion.score(dataclasses.replace(case.network, groups=groups))
    assert list(criterion.notes) == ["conv1"]
