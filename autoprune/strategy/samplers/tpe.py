"""Tree-structured Parzen estimator, Optuna's."""

from __future__ import annotations

from optuna.samplers import BaseSampler, TPESampler

from autoprune.strategy.problem import Problem
from autoprune.strategy.projected import ProjectedSampler
from autoprune.strategy.registry import SAMPLERS


@SAMPLERS.register("tpe")
def tpe(
    problem: Problem,
    *,
    seed: int,
    startup_trials: int = 10,
    ei_candidates: int = 24,
    multivariate: bool = False,
) -> BaseSampler:
    """Return Optuna's multi-objective TPE [Ozaki2022motpe], projected onto the budget.

    Args:
        problem: What is searched.
        seed: At least 0.
        startup_trials: Trials with random candidates before the model is used.
        ei_candidates: Samples of the model of which the most promising is proposed.
        multivariate: Model the parameters jointly instead of one by one.

    References:
        [Ozaki2022motpe] Ozaki, Tanigaki, Watanabe, Nomura, Onishi. Multiobjective Tree-Structured
        Parzen Estimator. JAIR 73, 2022.
    """

    def make(trial_seed: int) -> BaseSampler:
        return TPESampler(
            n_startup_trials=startup_trials,
            n_ei_candidates=ei_candidates,
            multivariate=multivariate,
            seed=trial_seed,
        )

    return ProjectedSampler(problem, make, seed=seed, startup_trials=startup_trials)
