"""NSGA-III, Optuna's."""

from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler

from autoprune.errors import SettingsError
from autoprune.strategy.problem import Problem
from autoprune.strategy.projected import ProjectedSampler
from autoprune.strategy.registry import SAMPLERS


@SAMPLERS.register("nsga3")
def nsga3(
    problem: Problem,
    *,
    seed: int,
    population_size: int = 24,
    dividing_parameter: int = 12,
    crossover_prob: float = 0.9,
    swapping_prob: float = 0.5,
    mutation_prob: float | None = None,
) -> BaseSampler:
    """Return Optuna's NSGA-III [Deb2014nsga3], projected onto the budget.

    With two objectives the reference points lie on a line; Optuna's default of four would keep a
    population in four niches, so there is one for about two members here.

    Args:
        problem: What is searched.
        seed: At least 0.
        population_size: Trials per generation; the first generation is random candidates.
        dividing_parameter: Parts into which the reference points divide the line between the two
            objectives.
        crossover_prob: Probability that a child has two parents.
        swapping_prob: Probability that a parameter comes from the second parent.
        mutation_prob: Probability that a parameter is drawn anew; ``None`` is one over their
            number.

    Raises:
        SettingsError: An option is outside its range.

    References:
        [Deb2014nsga3] Deb, Jain. An Evolutionary Many-Objective Optimization Algorithm Using
        Reference-Point-Based Nondominated Sorting Approach, Part I: Solving Problems With Box
        Constraints. IEEE Transactions on Evolutionary Computation 18(4), 2014.
    """
    if dividing_parameter < 1:
        raise SettingsError(f"dividing_parameter should be at least 1, got {dividing_parameter}")

    def make(trial_seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            # Said once in the documentation, not once per trial.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return NSGAIIISampler(
                population_size=population_size,
                dividing_parameter=dividing_parameter,
                crossover_prob=crossover_prob,
                swapping_prob=swapping_prob,
                mutation_prob=mutation_prob,
                seed=trial_seed,
            )

    return ProjectedSampler(problem, make, seed=seed, startup_trials=population_size)
