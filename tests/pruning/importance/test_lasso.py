from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import lars_path_gram

from autoprune.pruning.contributions import contribution_moments
from autoprune.pruning.importance.lasso import PENALTIES, Lasso, dropping_penalties, lasso
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny


class TestLasso(CriterionSuite):
    def build(self):
        return Lasso(samples=16)


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_units_appear_where_the_exact_path_has_them(name):
    """The least-angle path knows every penalty at which a factor leaves zero."""
    case = tiny(name)
    batches = case.batches(3, 2)
    criterion = Lasso(samples=40, seed=1)
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    moments = contribution_moments(case.network, batches, samples=40, seed=1)
    for group in case.groups:
        moment = moments[group.name]
        target = moment.sum(1)
        penalties, _, factors = lars_path_gram(
            target, moment, n_samples=1, method="lasso", alpha_min=1e-6 * np.abs(target).max()
        )
        for unit in range(group.size):
            nonzero = np.flatnonzero(np.abs(factors[unit]) > 1e-9)
            # It leaves zero at the knot before the first at which it is something else.
            entered = penalties[nonzero[0] - 1] / penalties[0] if len(nonzero) else 0.0
            step = PENALTIES[0]  # the grid's ratio
            if entered < PENALTIES[-1]:
                assert found[group.name][unit] < PENALTIES[-1]
            else:
                assert entered * step <= found[group.name][unit] <= entered / step


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_no_factor_can_be_bettered(share):
    """The subgradient conditions, which hold at the minimum and nowhere else."""
    rng = np.random.default_rng(0)
    terms = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    gram = terms.T @ terms / 40
    target = gram.sum(1)
    penalty = share * np.abs(target).max()
    factors = lasso(gram, target, penalty, np.zeros(6))
    slope = target - gram @ factors
    kept = factors != 0
    assert kept.any()
    np.testing.assert_allclose(slope[kept], penalty * np.sign(factors[kept]), rtol=1e-8)
    assert (np.abs(slope[~kept]) <= penalty * (1 + 1e-8)).all()


def test_of_two_copies_and_an_empty_unit():
    gram = np.array([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    scores = dropping_penalties(gram)
    assert scores[2] == 0
    assert max(scores[:2]) > 0
    assert dropping_penalties(np.zeros((2, 2))).tolist() == [0, 0]
    assert np.isnan(dropping_penalties(np.full((2, 2), np.inf))).all()
