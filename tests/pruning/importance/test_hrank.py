from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning.importance.hrank import HRank
from autoprune.pruning.importance.l2 import L2
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestHRank(CriterionSuite):
    def build(self):
        return HRank()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name)
    batches = case.batches(3, 2)
    criterion = HRank(images=4)
    found = criterion.score(case.network, batches)
    scored = 0
    for group in case.groups:
        maps = [reader for reader in case.heard(group, batches) if reader.inputs.ndim == 4]
        expected = np.zeros(group.size)
        for reader in maps:
            for unit in range(group.size):
                channels = [channel for channel, _, _ in reader.channels(unit)]
                ranks = [
                    np.linalg.matrix_rank(reader.inputs[image, channel].numpy())
                    for image in range(4)
                    for channel in channels
                ]
                expected[unit] += np.mean(ranks) / len(maps)
        if len(set(expected)) == 1:
            assert criterion.notes[group.name].endswith("scored by L2 magnitude")
            np.testing.assert_array_equal(found[group.name], L2().score(case.network)[group.name])
        else:
            scored += 1
            assert group.name not in criterion.notes
            np.testing.assert_allclose(found[group.name], expected)
    assert scored or name in ("attention", "flatten", "concatenation")


def test_only_the_first_images_count():
    case = tiny("chain")
    one, both = case.batches(4), case.batches(4)
    both += [(torch.zeros_like(both[0][0]), both[0][1])]
    for group, scores in HRank(images=4).score(case.network, both).items():
        np.testing.assert_array_equal(scores, HRank().score(case.network, one)[group])
    assert not np.array_equal(
        HRank().score(case.network, both)["conv1"], HRank().score(case.network, one)["conv1"]
    )
