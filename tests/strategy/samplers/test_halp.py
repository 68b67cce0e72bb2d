import numpy as np
import pytest

from autoprune.strategy.allocation import Allocator
from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.registry import SAMPLERS, wanted_damage
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["halp"]


def test_it_wants_first_order_importance():
    assert wanted_damage("halp") == "taylor"


@pytest.mark.parametrize("budget", [None, 0.6])
def test_proposals_solve_the_knapsack_at_spread_targets(budget):
    problem = made_up_problem(4, 32, budget=budget)
    sampler = SAMPLERS["halp"](problem, seed=0)
    with quiet_optuna():
        proposed = run_trials(new_study(sampler), problem, 8)
    allocator = Allocator(problem)
    costs = Costs.of_damage(allocator.grid, Damage.quadratic(problem.space))
    targets = [sampler.target_ms(number) for number in range(8)]
    solved = [allocator.solve(costs, target) for target in targets]
    assert proposed == solved
    if budget is not None:
        assert targets[0] == pytest.approx(problem.budget_ms)
    top = problem.dense_ms if budget is None else problem.budget_ms
    share = np.sort(np.log(targets) - np.log(problem.fastest[1]))
    share = share / np.log(top / problem.fastest[1])
    # Eight golden-ratio points leave no gap above 0.24.
    assert np.diff(share).max() < 0.25
