import dataclasses

import numpy as np
import pytest

from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.samplers.uniform import UniformLadder
from autoprune.strategy.space import Candidate, Dimension, SearchSpace
from autoprune.testing.samplers import (
    MadeUpLatency,
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["uniform"]


def uniform_candidates(problem, dropped):
    """Every distinct feasible uniform candidate, by a scan of the ratios far finer than steps."""
    space = problem.space
    largest = np.array([dim.max_ratio for dim in space.dimensions])
    ratios = np.minimum(np.linspace(0, 1, 4001)[:, None], largest).tolist()
    raw = [Candidate(tuple(row), dropped) for row in ratios]
    budget = np.inf if problem.budget_ms is None else problem.budget_ms
    fits = problem.latency_ms(raw) <= budget
    widths = np.unique(space.widths(raw)[fits], axis=0)
    return space.candidates(widths, np.repeat(space.keep(raw[:1]), len(widths), axis=0))


def propose(problem, trials):
    with quiet_optuna():
        return run_trials(new_study(SAMPLERS["uniform"](problem, seed=0)), problem, trials)


@pytest.mark.parametrize("latency", [MadeUpLatency(), MadeUpLatency(padding=4, bumps=0.5)])
@pytest.mark.parametrize("budget", [None, 0.5, 0.2])
def test_ladder_is_all_uniform_candidates_first_none_dropped(latency, budget):
    problem = made_up_problem(4, 24, latency=latency, budget=budget, multiple=1)
    whole = uniform_candidates(problem, (False,) * 4)
    proposed = propose(problem, len(whole))
    assert len(whole) > 5
    assert set(proposed) == set(whole)


def test_least_and_most_pruned_come_first_then_halves():
    problem = made_up_problem(4, 32, budget=0.6, multiple=1)
    ratios = [candidate.ratios[0] for candidate in propose(problem, 5)]
    everything = [candidate.ratios[0] for candidate in uniform_candidates(problem, (False,) * 4)]
    low, high = min(everything), max(everything)
    expected = [low, high, (low + high) / 2, low + (high - low) / 4, low + (high - low) * 3 / 4]
    assert ratios == pytest.approx(expected, abs=1 / 32)
    assert ratios[:2] == [low, high]


def test_any_number_of_trials_covers_the_interval():
    problem = made_up_problem(4, 128, multiple=1)
    ratios = [candidate.ratios[0] for candidate in propose(problem, 17)]
    # Sixteen pieces of 0.062 each, give or take the grid.
    assert np.diff(sorted(ratios)).max() <= 0.0625 + 2 / 128


def test_groups_have_different_grids_but_one_ratio():
    space = SearchSpace((Dimension("a", 64, 8, 8), Dimension("b", 50, 5, 1), Dimension("c", 9, 9)))
    problem = Problem(space, lambda widths, keep: widths.sum(axis=1) / 10.0)
    for candidate in propose(problem, 12):
        a, b, c = candidate.ratios
        assert abs(a - b) <= 0.5 * 8 / 64 + 0.5 / 50 + 1e-9 or b > space.dimensions[0].max_ratio
        assert c == 0.0


def test_when_widths_are_used_up_blocks_go_evenly():
    problem = made_up_problem(6, 8, multiple=4)
    proposed = propose(problem, 8)
    counts = [sum(candidate.dropped) for candidate in proposed]
    assert counts == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.flatnonzero(proposed[2].dropped).tolist() == [3]
    assert np.flatnonzero(proposed[6].dropped).tolist() == [1, 3, 5]
    # After the last rung proposals repeat.
    assert set(propose(problem, 12)) == set(proposed)


def test_budgets_that_need_depth_drop_blocks():
    problem = made_up_problem(6, 32)
    needed = 0.9 * problem.latency_ms([problem.space.smallest()])[0]
    proposed = propose(dataclasses.replace(problem, budget_ms=needed), 4)
    assert (problem.latency_ms(proposed) <= needed).all()
    assert all(any(candidate.dropped) for candidate in proposed)


def test_budgets_that_no_uniform_candidate_meets_are_met():
    # Only the second block is slow; an even spread of one drop takes the third of four.
    space = SearchSpace((), tuple("abcd"), (True,) * 4, (), 1)
    problem = Problem(space, lambda w, keep: 1.0 + keep @ np.array([0.0, 5.0, 0.0, 0.0]), 2.0)
    assert propose(problem, 2)[0].dropped == (False, True, False, False)


def test_large_networks_are_thinned():
    problem = made_up_problem(2, 6000, multiple=1)
    ladder = UniformLadder(problem, seed=0).ladder
    none_dropped = [candidate for candidate in ladder if not any(candidate.dropped)]
    assert 1000 < len(none_dropped) <= 2048
    assert problem.space.dense() in none_dropped
    assert problem.space.smallest() in none_dropped
