"""NSGA-II, Optuna's."""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIISampler

from autoprune.strategy.problem import Problem
from autoprune.strategy.projected import ProjectedSampler
from autoprune.strategy.registry import SAMPLERS


@SAMPLERS.register("nsga2")
def nsga2(
    problem: Problem,
    *,
    seed: int,
    population_size: int = 24,
    crossover_prob: float = 0.9,
    swapping_prob: float = 0.5,
    mutation_prob: float | None = None,
) -> BaseSampler:
    """Return Optuna's NSGA-II [Deb2002nsga2], projected onto the budget.

    Args:
        problem: What is searched.
        seed: At least 0.
        population_size: Trials per generation; the first generation is random candidates.
        crossover_prob: Probability that a child has two parents.
        swapping_prob: Probability that a parameter comes from the second parent.
        mutation_prob: Probability that a parameter is drawn anew; ``None`` is one over their
            number.

    References:
        [Deb2002nsga2] Deb, Pratap, Agarwal, Meyarivan. A fast and elitist multiobjective genetic
        algorithm: NSGA-II. IEEE Transactions on Evolutionary Computation 6(2), 2002.
    """

    def make(trial_seed: int) -> BaseSampler:
        return NSGAIISampler(
            population_size=population_size,
            crossover_prob=crossover_prob,
            swapping_prob=swapping_prob,
            mutation_prob=mutation_prob,
            seed=trial_seed,
        )

    return ProjectedSampler(problem, make, seed=seed, startup_trials=population_size)
