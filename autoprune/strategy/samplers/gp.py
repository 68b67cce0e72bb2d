"""Bayesian optimisation with a Gaussian process, Optuna's."""

from __future__ import annotations

from optuna.samplers import BaseSampler, GPSampler

from autoprune.strategy.problem import Problem
from autoprune.strategy.projected import ProjectedSampler
from autoprune.strategy.registry import SAMPLERS


@SAMPLERS.register("gp")
def gp(
    problem: Problem,
    *,
    seed: int,
    startup_trials: int = 10,
    hypervolume: bool = False,
) -> BaseSampler:
    """Return Optuna's Gaussian process with log-EI [Ament2023logei], projected onto the budget.

    Latency is known exactly, so no process is spent on it. The one that there is models the
    log-loss where there is a budget, and the log-loss less what is usual at the candidate's own
    latency where there is none (:func:`~autoprune.strategy.residual.scalars`). With ``hypervolume``
    it is the textbook's form instead: one process for the loss and one for the latency, and the
    expected improvement of their hypervolume [Daulton2020qehvi], which takes several times longer.

    Args:
        problem: What is searched.
        seed: At least 0.
        startup_trials: Trials with random candidates before the model is used.
        hypervolume: Model latency as well.

    References:
        [Ament2023logei] Ament, Daulton, Eriksson, Balandat, Bakshy. Unexpected Improvements to
        Expected Improvement for Bayesian Optimization. NeurIPS 2023.
        [Daulton2020qehvi] Daulton, Balandat, Bakshy. Differentiable Expected Hypervolume
        Improvement for Parallel Multi-Objective Bayesian Optimization. NeurIPS 2020.
    """

    def make(trial_seed: int) -> BaseSampler:
        return GPSampler(n_startup_trials=startup_trials, seed=trial_seed)

    return ProjectedSampler(
        problem, make, seed=seed, startup_trials=startup_trials, scalar=not hypervolume
    )
