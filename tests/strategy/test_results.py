import math

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from autoprune.strategy.budget import project
from autoprune.strategy.results import Results
from autoprune.testing.samplers import made_up_problem, new_study, quiet_optuna


@pytest.fixture
def setting():
    problem = made_up_problem(3, 16, budget=0.5)
    with quiet_optuna():
        yield problem, new_study(RandomSampler(0)), Results(problem)


def ask(problem, study, candidate):
    study.enqueue_trial(problem.space.params(candidate))
    return study.ask(problem.space.distributions())


def test_a_candidate_over_the_budget_is_found_by_what_it_was_projected_to(setting):
    problem, study, results = setting
    dense = problem.space.dense()
    study.tell(ask(problem, study, project(problem, dense)), [0.7, 1.0])
    study.ask()
    losses = results.losses(study, study.trials[-1])
    assert losses(dense) == 0.7
    assert losses(problem.space.smallest()) is None


def test_states_of_trials(setting):
    problem, study, results = setting
    space = problem.space
    small = space.smallest()
    pending = ask(problem, study, small)
    study.ask()
    last = study.trials[-1]
    assert math.isnan(results.losses(study, last)(small))
    assert results.losses(study, study.trials[0])(small) is None
    study.tell(pending, state=TrialState.FAIL)
    assert results.losses(study, last)(small) == math.inf
    # A second try counts, and the first complete one stays.
    again = ask(problem, study, small)
    assert math.isnan(results.losses(study, last)(small))
    study.tell(again, [0.4, 1.0])
    assert results.losses(study, last)(small) == 0.4
    study.tell(ask(problem, study, small), [0.6, 1.0])
    assert results.losses(study, last)(small) == 0.4
