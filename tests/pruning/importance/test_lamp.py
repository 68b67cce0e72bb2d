from __future__ import annotations

import numpy as np
import pytest

from autoprune.pruning.importance.lamp import Lamp
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestLamp(CriterionSuite):
    def build(self):
        return Lamp()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name)
    weights = {path: p.detach() for path, p in case.model.named_parameters() if p.ndim > 1}
    found = Lamp().score(case.network)
    for group in case.groups:
        squares = []
        for unit in range(group.size):
            square = 0.0
            for member in group.members:
                for position in member.indices[unit] if member.path in weights else ():
                    entries = weights[member.path].select(member.dim, int(position))
                    square += sum(w * w for w in entries.flatten().tolist())
            squares.append(square)
        for unit, score in enumerate(found[group.name]):
            no_smaller = sum(s for s in squares if s >= squares[unit])
            assert score == pytest.approx(squares[unit] / no_smaller, rel=1e-4)


def test_the_best_of_every_group_is_worth_the_same():
    scores = Lamp().score(tiny("residual").network)
    assert [float(np.max(group)) for group in scores.values()] == [1.0, 1.0]
