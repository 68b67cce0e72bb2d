from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning.importance.wanda import Wanda
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestWanda(CriterionSuite):
    def build(self):
        return Wanda()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    criterion = Wanda()
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        heard = case.heard(group, batches)
        expected = np.zeros(group.size)
        for reader in heard:
            site = np.zeros(group.size)
            for unit in range(group.size):
                for channel, conv_group, place in reader.channels(unit):
                    norm = sum(x * x for x in reader.values[:, channel].flatten().tolist()) ** 0.5
                    weights = reader.readers(conv_group)[:, place].flatten().tolist()
                    site[unit] += sum(abs(w) for w in weights) * norm
            expected += site / site.mean() / len(heard)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-9)
