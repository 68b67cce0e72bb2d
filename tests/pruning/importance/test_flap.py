from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning.importance.flap import Flap
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestFlap(CriterionSuite):
    def build(self):
        return Flap()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
@pytest.mark.parametrize("normaliser", ["gaussian", "none"])
def test_equals_a_loop_over_the_formula(name, normaliser):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 1, 2)
    criterion = Flap(normaliser=normaliser)
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        heard = case.heard(group, batches)
        expected = np.zeros(group.size)
        for reader in heard:
            site = np.zeros(group.size)
            for unit in range(group.size):
                for channel, conv_group, place in reader.channels(unit):
                    values = reader.values[:, channel].flatten().tolist()
                    mean = sum(values) / len(values)
                    variance = sum((x - mean) ** 2 for x in values) / len(values)
                    weights = reader.readers(conv_group)[:, place].flatten().tolist()
                    site[unit] += variance * sum(w * w for w in weights)
            site /= len(reader.channels(0))
            if normaliser == "gaussian":
                site = (site - site.mean()) / site.std()
            expected += site / len(heard)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_what_is_constant_is_worth_nothing():
    case = tiny("flatten")
    with torch.no_grad():
        case.model.hidden.weight[2] = 0
    found = Flap(normaliser="none").score(case.network, case.batches(4))
    assert case.model.hidden.bias[2] != 0
    assert found["hidden"][2] == 0
