from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning.importance.apoz import APoZ
from autoprune.pruning.importance.l2 import L2
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestAPoZ(CriterionSuite):
    def build(self):
        return APoZ()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    criterion = APoZ()
    found = criterion.score(case.network, batches)
    for group in case.groups:
        heard = case.heard(group, batches)
        expected = np.zeros(group.size)
        for reader in heard:
            for unit in range(group.size):
                values = [
                    x
                    for channel, _, _ in reader.channels(unit)
                    for x in reader.values[:, channel].flatten().tolist()
                ]
                expected[unit] += 1 - values.count(0.0) / len(values)
        expected /= len(heard)
        if (expected == 1).all():
            assert criterion.notes[group.name] == (
                "its readers see no zeros; scored by L2 magnitude"
            )
            np.testing.assert_array_equal(found[group.name], L2().score(case.network)[group.name])
        else:
            assert group.name not in criterion.notes
            np.testing.assert_allclose(found[group.name], expected, rtol=1e-9, atol=1e-12)


def test_without_relu_there_is_nothing_to_count():
    case = tiny("attention")
    criterion = APoZ()
    criterion.score(case.network, case.batches(2))
    assert sorted(criterion.notes) == ["patch", "qkv", "widen"]
