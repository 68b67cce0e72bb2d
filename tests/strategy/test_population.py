import dataclasses
import random

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autoprune.strategy.population import Population, evaluated
from autoprune.testing.samplers import made_up_problem, new_study, quiet_optuna


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def filled(problem, rows):
    """Return a study of (ratio of group 1, loss, latency, attributes) rows."""
    study = new_study(optuna.samplers.RandomSampler(0))
    space = problem.space
    for ratio, loss, ms, attributes in rows:
        params = space.params(space.dense()) | {"ratio/group1": ratio, "drop/block2": ratio > 0.5}
        study.add_trial(
            create_trial(
                params=params,
                distributions=space.distributions(),
                values=[loss, ms],
                user_attrs=attributes,
            )
        )
    return study


def test_arrays_are_the_candidates():
    problem = made_up_problem(4, 32, budget=0.5)
    study = filled(problem, [(0.1, 1.0, 3.0, {}), (0.75, 2.0, 2.0, {"screened": True})])
    population = evaluated(problem, study)
    space = problem.space
    for index, trial in enumerate(study.trials):
        assert population.candidate(index) == space.snap(space.candidate(trial.params))
    assert population.loss.tolist() == [1.0, 2.0]
    assert population.latency_ms.tolist() == [3.0, 2.0]
    assert population.rough.tolist() == [False, True]
    assert len(population) == 2


def test_only_complete_trials_that_belong_are_members():
    problem = made_up_problem(4, 32)
    study = filled(problem, [(0.1, 1.0, 3.0, {"dense": True}), (0.2, 1.0, 3.0, {})])
    study.ask(problem.space.distributions())
    failed = study.ask(problem.space.distributions())
    study.tell(failed, state=TrialState.FAIL)
    study.add_trial(create_trial(values=[0.0, 0.0]))
    assert [trial.number for trial in evaluated(problem, study).trials] == [1]
    assert len(evaluated(problem, new_study(optuna.samplers.RandomSampler(0)))) == 0


def test_with_a_budget_low_losses_come_first_rough_ones_later_and_those_over_it_last():
    problem = dataclasses.replace(made_up_problem(4, 32), budget_ms=5.0)
    rows = [
        (0.1, 3.0, 5.0, {}),
        (0.2, 0.5, 6.0, {}),
        (0.3, 1.0, 4.0, {}),
        (0.4, 0.1, 4.0, {"screened": True}),
        (0.6, 1.0, 3.0, {}),
    ]
    population = evaluated(problem, filled(problem, rows))
    assert population.ranked().tolist() == [2, 4, 0, 3, 1]
    # All aim at one latency, so there are no nearer ones.
    assert population.ranked(1.0, 2).tolist() == [2, 4, 0, 3, 1]


def test_without_one_candidates_are_compared_with_what_is_usual_at_their_latency():
    problem = made_up_problem(4, 32)
    latencies = np.linspace(1.0, 8.0, 12)
    factors = np.array([1.0, 1.2, 0.8, 1.1, 0.9, 1.3, 1.0, 0.7, 1.05, 0.95, 1.15, 0.85])
    rows = [
        (0.04 * i, 4.0 / ms * f, ms, {})
        for i, (ms, f) in enumerate(zip(latencies, factors, strict=True))
    ]
    population = evaluated(problem, filled(problem, rows))
    logs, places = np.log([row[1] for row in rows]), np.log(latencies)
    residual = logs - np.polyval(np.polyfit(places, logs, 2), places)
    assert population.ranked().tolist() == np.argsort(residual).tolist()
    # The fastest and the slowest are as good as their neighbours although their losses are not.
    near = population.ranked(latencies[7], 3).tolist()
    assert sorted(near) == [6, 7, 8]
    assert near[0] == 7


def test_the_order_in_which_results_came_does_not_matter():
    problem = made_up_problem(4, 32)
    rows = [(0.05 * i, 1.0 + i % 3, 2.0 + i, {}) for i in range(8)]
    trials = filled(problem, rows).trials
    mixed = random.Random(1).sample(trials, len(trials))
    assert mixed != trials
    one = Population.of(problem, trials)
    other = Population.of(problem, sorted(mixed, key=lambda t: t.number))
    assert one.ranked().tolist() == other.ranked().tolist()
    assert (one.ratios == other.ratios).all()
