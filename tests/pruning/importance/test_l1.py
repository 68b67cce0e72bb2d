from __future__ import annotations

import itertools

import numpy as np
import pytest

from autoprune.errors import UnknownNameError
from autoprune.pruning.importance.l1 import L1
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestL1(CriterionSuite):
    def build(self):
        return L1()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name)
    weights = {path: p.tolist() for path, p in case.model.named_parameters() if p.ndim > 1}
    shapes = {path: p.shape for path, p in case.model.named_parameters()}
    found = L1().score(case.network)
    for group in case.groups:
        sites = []
        for member in group.members:
            if member.path not in weights:
                continue
            site = [0.0] * group.size
            for unit, positions in enumerate(member.indices.tolist()):
                for place in itertools.product(*map(range, shapes[member.path])):
                    if place[member.dim] in positions:
                        w = weights[member.path]
                        for index in place:
                            w = w[index]
                        site[unit] += abs(w)
            sites.append([s * group.size / sum(site) for s in site])
        expected = [sum(scores) / len(sites) for scores in zip(*sites, strict=True)]
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-5)
        assert found[group.name].mean() == pytest.approx(1)


def test_a_square_layer_counts_as_row_and_as_column():
    case = tiny("residual")
    group = next(group for group in case.groups if group.name == "stem")
    assert [m.dim for m in group.members if m.path == "square.weight"] == [0, 1]


def test_normaliser_is_checked_at_once():
    with pytest.raises(UnknownNameError, match="normaliser named 'median'"):
        L1(normaliser="median")
