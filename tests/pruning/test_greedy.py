from __future__ import annotations

import numpy as np

from autoprune.pruning.greedy import removal_order


def naive(cost):
    """Return when each unit goes, trying every unit at every step."""
    gone, order = [], [0] * len(cost)
    for turn in range(len(cost)):
        costs = {}
        for unit in set(range(len(cost))) - set(gone):
            removed = [*gone, unit]
            costs[unit] = sum(cost[i][j] for i in removed for j in removed)
        unit = min(costs, key=costs.get)
        order[unit] = turn
        gone.append(unit)
    return order


def test_each_step_takes_what_costs_least_with_what_is_gone():
    rng = np.random.default_rng(0)
    for units in (1, 2, 5, 9):
        factor = rng.normal(size=(units, 4))
        cost = factor @ factor.T
        assert removal_order(cost).tolist() == naive(cost.tolist())


def test_what_costs_nothing_goes_first_and_together():
    cost = np.zeros((4, 4))
    cost[1, 1], cost[3, 3] = 2.0, 1.0
    assert removal_order(cost).tolist() == [0, 3, 0, 2]


def test_what_is_not_finite_is_handed_on():
    assert np.isnan(removal_order(np.array([[1.0, np.nan], [np.nan, 1.0]]))).all()
