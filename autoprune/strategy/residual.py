"""One number per trial for strategies that minimise one: how good it is for its latency."""

from __future__ import annotations

import numpy as np
import optuna
from jaxtyping import Float
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoprune.strategy.problem import Problem

#: Twice the coefficients of a parabola.
_FEWEST_FOR_TREND = 6


def trend_residual(
    logs: Float[np.ndarray, " n"], latency_ms: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return the log-loss of each point less what is usual at its latency.

    Usual is a parabola in the logarithm of the latency, fitted to all points; with fewer than six
    points it is their mean. Latency is known exactly, so what a model has to learn is the loss
    alone. The distance to the front would do too, but all trials on it tie, which leaves a ranking
    of few trials, and a model of them, little to go by.

    Args:
        logs: Log-losses.
        latency_ms: Latencies in ms.
    """
    places = np.log(latency_ms)
    extent = float(np.ptp(places)) if len(places) else 0.0
    if len(logs) < _FEWEST_FOR_TREND or extent == 0.0:
        level: Float[np.ndarray, " n"] = logs - logs.mean() if len(logs) else logs
        return level
    powers = np.vander((places - places.mean()) / extent, 3)
    residual: Float[np.ndarray, " n"] = logs - powers @ np.linalg.lstsq(powers, logs)[0]
    return residual


def scalars(problem: Problem, trials: list[FrozenTrial]) -> Float[np.ndarray, " n"]:
    """Return what a strategy with one objective minimises, for complete trials.

    With a budget, which proposals always meet, that is the log-loss. Without one it is
    :func:`trend_residual`, so that fast networks are not compared with slow ones.

    Args:
        problem: Says whether there is a budget.
        trials: Complete trials with loss and latency.
    """
    values = np.array([trial.values for trial in trials], float).reshape(len(trials), 2)
    logs = problem.log_loss(values[:, 0])
    return logs if problem.budget_ms is not None else trend_residual(logs, values[:, 1])


def complete_trials(problem: Problem, study: Study) -> list[FrozenTrial]:
    """Return complete trials that have the problem's parameters and finite values, by number.

    Args:
        problem: Supplies the parameters' names.
        study: Trials of any state, told in any order.
    """
    names = problem.space.distributions().keys()
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    usable = [t for t in found if names <= t.params.keys() and np.isfinite(t.values).all()]
    return sorted(usable, key=lambda trial: trial.number)


def scalar_study(problem: Problem, study: Study) -> Study:
    """Return a copy in memory of complete and pending trials with the one value of :func:`scalars`.

    Args:
        problem: Space and budget.
        study: The study with two objectives; it stays as it is.
    """
    copy = optuna.create_study(direction="minimize")
    distributions = problem.space.distributions()
    complete = complete_trials(problem, study)
    for trial, value in zip(complete, scalars(problem, complete).tolist(), strict=True):
        params = {name: trial.params[name] for name in distributions}
        copy.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if distributions.keys() <= trial.params.keys():
            params = {name: trial.params[name] for name in distributions}
            state = TrialState.RUNNING
            copy.add_trial(
                optuna.create_trial(state=state, params=params, distributions=distributions)
            )
    return copy
