from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning.importance.activation import Activation
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestActivation(CriterionSuite):
    def build(self):
        return Activation()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    criterion = Activation()
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        heard = case.heard(group, batches)
        expected = np.zeros(group.size)
        for reader in heard:
            site = []
            for unit in range(group.size):
                values = [
                    abs(x)
                    for channel, _, _ in reader.channels(unit)
                    for x in reader.values[:, channel].flatten().tolist()
                ]
                site.append(sum(values) / len(values))
            expected += np.array(site) / np.mean(site) / len(heard)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-9)
