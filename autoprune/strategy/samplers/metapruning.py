"""MetaPruning's evolution: mutation and crossover of the best, moved onto the budget."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.levels import LevelGrid, plateau_levels
from autoprune.strategy.population import Population, evaluated
from autoprune.strategy.problem import Problem
from autoprune.strategy.rays import random_candidate
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import reach, target_ms
from autoprune.strategy.variation import crossed, mutated


class MetaPruning(CandidateSampler):
    """Mutates and crosses the best candidates [Liu2019metapruning].

    Half of the children are one of the best with every gene replaced with a small probability, half
    take each gene from either of two. What we changed: a child is scaled to the latency it is meant
    for instead of drawn again until it happens to be close; there are no generations that workers
    would wait for, every trial has parents among all that is evaluated; and without a budget every
    trial aims at another latency, with the parents that are best for theirs. The evaluator is
    autoprune's; no network generates weights.

    References:
        [Liu2019metapruning] Liu, Mu, Zhang, Guo, Yang, Cheng, Sun. MetaPruning: Meta Learning for
        Automatic Neural Network Channel Pruning. ICCV 2019.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        startup_trials: int = 10,
        parents: int = 10,
        mutation_share: float = 0.5,
        mutation_probability: float = 0.1,
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            startup_trials: Random candidates that have to be complete before there are children.
            parents: How many of the best have children.
            mutation_share: Share of children that are mutated, the others are crossed.
            mutation_probability: Probability that a gene of a mutated child is replaced.

        Raises:
            SettingsError: A number is out of its range.
        """
        super().__init__(problem, seed=seed)
        if startup_trials < 1 or parents < 2:
            raise SettingsError(
                "sampler 'metapruning': expected startup_trials >= 1 and parents >= 2, got "
                f"{startup_trials} and {parents}"
            )
        self.startup_trials = startup_trials
        self.parents = parents
        self.mutation_share = mutation_share
        self.mutation_probability = mutation_probability

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return a child of the best, or a random candidate, at the trial's latency."""
        limit = target_ms(self.problem, trial.number)
        population = evaluated(self.problem, study)
        if len(population) < self.startup_trials:
            return reach(self.problem, random_candidate(self.problem, rng, target_ms=limit), limit)
        return reach(self.problem, self.child(population, rng), limit)

    def child(self, population: Population, rng: np.random.Generator) -> Candidate:
        """Return a child of the best, not yet scaled to a latency."""
        space = self.problem.space
        best = population.ranked()[: self.parents]
        mutates = len(best) < 2 or rng.random() < self.mutation_share
        chosen = rng.choice(best, size=1 if mutates else 2, replace=False)
        first, second = chosen[:1], chosen[-1:]
        parents = population.ratios[first], population.dropped[first]
        if mutates:
            child = mutated(space, self._grid, *parents, rng, probability=self.mutation_probability)
        else:
            mate = population.ratios[second], population.dropped[second]
            child = crossed(space, parents, mate, rng)
        return Candidate(tuple(child[0][0].tolist()), tuple(child[1][0].tolist()))

    @cached_property
    def _grid(self) -> LevelGrid:
        return plateau_levels(self.problem)


@SAMPLERS.register("metapruning")
def metapruning(
    problem: Problem,
    *,
    seed: int,
    startup_trials: int = 10,
    parents: int = 10,
    mutation_share: float = 0.5,
    mutation_probability: float = 0.1,
) -> BaseSampler:
    """Return :class:`MetaPruning`.

    Args:
        problem: What is searched.
        seed: At least 0.
        startup_trials: Random candidates that have to be complete before there are children; the
            paper's are 50 of 1,000.
        parents: How many of the best have children.
        mutation_share: Share of children that are mutated, the others are crossed.
        mutation_probability: Probability that a gene of a mutated child is replaced.

    Raises:
        SettingsError: A number is out of its range.
    """
    return MetaPruning(
        problem,
        seed=seed,
        startup_trials=startup_trials,
        parents=parents,
        mutation_share=mutation_share,
        mutation_probability=mutation_probability,
    )
