import dataclasses

import numpy as np
import optuna
import pytest

from autoprune.strategy.residual import complete_trials, scalar_study, scalars, trend_residual
from autoprune.testing.samplers import made_up_problem, new_study, quiet_optuna, run_trials


def random_study(problem, trials=20, fails=lambda n: n % 5 == 1):
    with quiet_optuna():
        study = new_study(optuna.samplers.RandomSampler(0))
        run_trials(study, problem, trials, fails=fails)
    return study


def test_a_parabola_in_the_logarithm_of_the_latency_has_no_residual():
    rng = np.random.default_rng(0)
    latency_ms = rng.uniform(1, 50, 30)
    usual = 2.0 - 0.7 * np.log(latency_ms) + 0.3 * np.log(latency_ms) ** 2
    noise = rng.normal(size=30)
    assert trend_residual(usual, latency_ms) == pytest.approx(np.zeros(30), abs=1e-9)
    # Adding what the trend explains changes nothing else.
    residual = trend_residual(usual + noise, latency_ms)
    assert residual == pytest.approx(trend_residual(noise, latency_ms), abs=1e-9)
    expected = noise - np.polyval(np.polyfit(np.log(latency_ms), noise, 2), np.log(latency_ms))
    assert residual == pytest.approx(expected, abs=1e-9)


def test_few_or_equally_slow_points_are_compared_with_their_mean():
    logs = np.array([1.0, 2.0, 6.0])
    assert trend_residual(logs, np.array([1.0, 2.0, 3.0])).tolist() == [-2.0, -1.0, 3.0]
    many = np.arange(8.0)
    assert trend_residual(many, np.full(8, 5.0)).tolist() == (many - 3.5).tolist()
    assert trend_residual(np.zeros(0), np.zeros(0)).shape == (0,)


def test_with_a_budget_the_log_loss_is_what_counts():
    free = made_up_problem(2, 16)
    study = random_study(free)
    trials = complete_trials(free, study)
    logs = np.log([trial.values[0] for trial in trials])
    capped = dataclasses.replace(free, budget_ms=free.dense_ms)
    assert scalars(capped, trials) == pytest.approx(logs)
    latency_ms = np.array([trial.values[1] for trial in trials])
    assert scalars(free, trials) == pytest.approx(trend_residual(logs, latency_ms))
    offset = dataclasses.replace(capped, loss_offset=0.5)
    assert scalars(offset, trials) == pytest.approx(np.log(np.exp(logs) + 0.5))


def test_foreign_failed_and_infinite_trials_are_left_out():
    problem = made_up_problem(2, 16)
    study = random_study(problem)
    study.add_trial(optuna.create_trial(values=[1.0, 1.0]))
    params, distributions = study.trials[0].params, study.trials[0].distributions
    study.add_trial(
        optuna.create_trial(params=params, distributions=distributions, values=[np.inf, 1.0])
    )
    numbers = [trial.number for trial in complete_trials(problem, study)]
    assert numbers == [n for n in range(20) if n % 5 != 1]


def test_the_copy_has_one_objective_and_what_is_pending():
    problem = made_up_problem(2, 16)
    study = random_study(problem)
    pending = study.ask(problem.space.distributions())
    before = [(trial.state, trial.params, trial.values) for trial in study.trials]
    with quiet_optuna():
        copy = scalar_study(problem, study)
    complete = complete_trials(problem, study)
    assert [trial.params for trial in copy.trials[:-1]] == [trial.params for trial in complete]
    assert [trial.value for trial in copy.trials[:-1]] == scalars(problem, complete).tolist()
    assert copy.trials[-1].state == optuna.trial.TrialState.RUNNING
    assert copy.trials[-1].params == pending.params
    assert [(trial.state, trial.params, trial.values) for trial in study.trials] == before
