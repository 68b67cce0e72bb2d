from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning import gram
from autoprune.pruning.importance.l2 import L2
from autoprune.pruning.importance.sparsegpt import SparseGPT
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestSparseGPT(CriterionSuite):
    def build(self):
        return SparseGPT()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_a_loop_over_the_formula(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    criterion = SparseGPT()
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        heard = case.heard(group, batches)
        expected = np.zeros(group.size)
        for reader in heard:
            width = reader.weight.shape[1]
            factors = []
            for conv_group in range(reader.conv_groups):
                part = reader.values[:, conv_group * width : (conv_group + 1) * width]
                rows = part.movedim(1, 0).flatten(1).numpy()
                hessian = 2 * rows @ rows.T / rows.shape[1]
                hessian += 0.01 * np.trace(hessian) / width * np.eye(width)
                # The paper's own way: invert, then the upper factor.
                upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
                factors.append(np.diagonal(upper))
            site = np.zeros(group.size)
            for unit in range(group.size):
                for _, conv_group, place in reader.channels(unit):
                    weights = reader.readers(conv_group)[:, place].flatten().tolist()
                    for w in weights:
                        site[unit] += w * w / factors[conv_group][place] ** 2
            expected += site / site.mean() / len(heard)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_inputs_too_wide_for_a_matrix_are_scored_by_l2_and_listed(monkeypatch):
    case = tiny("flatten")
    monkeypatch.setattr(gram, "WIDEST", 32)
    criterion = SparseGPT()
    found = criterion.score(case.network, case.batches(4))
    assert list(criterion.notes) == ["conv"]
    np.testing.assert_array_equal(found["conv"], L2().score(case.network)["conv"])
