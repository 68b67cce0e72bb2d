from __future__ import annotations

import numpy as np

from autoprune.pruning.importance.random import Random
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import tiny


class TestRandom(CriterionSuite):
    def build(self):
        return Random(seed=3)


def test_seeds_differ_and_scores_are_fractions():
    network = tiny("residual").network
    first, second = Random(seed=1).score(network), Random(seed=2).score(network)
    for group, scores in first.items():
        assert not np.array_equal(scores, second[group])
        assert ((scores >= 0) & (scores < 1)).all()
