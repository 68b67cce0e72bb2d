"""Once-for-all's search: evolution on a learned predictor of the loss."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.levels import LevelGrid, plateau_levels
from autoprune.strategy.population import Population, evaluated
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import directions, random_at, reach, reach_rows, target_ms
from autoprune.strategy.variation import crossed, mutated

if TYPE_CHECKING:
    from sklearn.neural_network import MLPRegressor

#: Ratios and dropped blocks of candidates.
Rows = tuple[Float[np.ndarray, "_ groups"], Bool[np.ndarray, "_ blocks"]]

#: Log-losses that differ by less are divided by it all the same.
_LEAST_SPREAD = 1e-12


class OnceForAll(CandidateSampler):
    """Evolves candidates on a network's prediction of their loss [Cai2020ofa].

    After some random candidates a multi-layer perceptron learns the logarithm of the loss from the
    level of every group, one-hot, and whether each block is dropped; groups that are gone with
    their block are all zero. An evolution on its predictions alone finds the candidate to evaluate:
    parents are the best quarter and stay, half of the children are mutated, half are crossed.

    What we changed: the predictor is fitted again whenever the evaluations have grown by a tenth,
    because a predictor that has seen random candidates only is wrong about the best ones; the
    evolution starts from what is evaluated as well as from random candidates; children are scaled
    to the budget instead of drawn again until they meet it; and without a budget every trial aims
    at another latency, the predictor being the same.

    References:
        [Cai2020ofa] Cai, Gan, Wang, Zhang, Han. Once-for-All: Train One Network and Specialize it
        for Efficient Deployment. ICLR 2020.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        startup_trials: int = 20,
        hidden_units: int = 400,
        epochs: int = 60,
        population_size: int = 100,
        generations: int = 15,
        mutation_probability: float = 0.1,
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            startup_trials: Random candidates that have to be complete before there is a predictor.
            hidden_units: Units of each of the predictor's three hidden layers.
            epochs: Passes over the evaluated candidates in a fit.
            population_size: Candidates of a generation of the evolution.
            generations: Generations of the evolution.
            mutation_probability: Probability that a gene of a mutated child is replaced.

        Raises:
            SettingsError: A number is out of its range.
        """
        super().__init__(problem, seed=seed)
        if min(startup_trials, hidden_units, epochs, generations) < 1 or population_size < 4:
            raise SettingsError(
                "sampler 'ofa': expected startup_trials, hidden_units, epochs and generations >= 1 "
                f"and population_size >= 4, got {startup_trials}, {hidden_units}, {epochs}, "
                f"{generations} and {population_size}"
            )
        self.startup_trials = startup_trials
        self.hidden_units = hidden_units
        self.epochs = epochs
        self.population_size = population_size
        self.generations = generations
        self.mutation_probability = mutation_probability
        # What the last fit was made from and what came out; both follow from the study.
        self._fit: tuple[tuple[int, ...], MLPRegressor] | None = None

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the candidate with the best prediction at the trial's latency."""
        limit = target_ms(self.problem, trial.number)
        population = evaluated(self.problem, study)
        if len(population) < self.startup_trials:
            return random_at(self.problem, rng, limit)
        return reach(self.problem, self._evolved(population, limit, rng), limit)

    def features(
        self, ratios: Float[np.ndarray, "n groups"], dropped: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, "n features"]:
        """Return what the predictor reads: one-hot levels of all groups, then dropped blocks."""
        space, grid = self.problem.space, self._grid
        level = grid.nearest(np.rint(space.sizes * (1.0 - ratios)).astype(np.int64))
        hot = level[:, :, None] == np.arange(grid.widths.shape[1])
        hot &= space.active(~dropped)[:, :, None]
        flat = hot.reshape(len(ratios), -1)
        read: Float[np.ndarray, "n features"] = np.concatenate([flat, dropped], axis=1).astype(
            float
        )
        return read

    def _predictor(self, population: Population) -> MLPRegressor:
        """Return the predictor fitted to the evaluated candidates that are old enough."""
        count = _milestone(self.startup_trials, len(population))
        numbers = tuple(trial.number for trial in population.trials[:count])
        if self._fit is not None and self._fit[0] == numbers:
            return self._fit[1]
        from sklearn.neural_network import MLPRegressor  # a second that others need not wait

        logs = self.problem.log_loss(population.loss[:count])
        # One scale for all fits would need a guess; constants do not change who is best.
        target = (logs - logs.mean()) / max(float(logs.std()), _LEAST_SPREAD)
        model = MLPRegressor(
            hidden_layer_sizes=(self.hidden_units,) * 3, random_state=self.seed % 2**32
        )
        read = self.features(population.ratios[:count], population.dropped[:count])
        for _ in range(self.epochs):
            model.partial_fit(read, target)
        self._fit = numbers, model
        return model

    def _evolved(
        self, population: Population, limit_ms: float, rng: np.random.Generator
    ) -> Candidate:
        """Return the best candidate of the last generation."""
        model = self._predictor(population)
        size = self.population_size
        best = population.ranked()[: size // 2]
        drawn = self._drawn(size - len(best), rng)
        rows = (
            np.concatenate([population.ratios[best], drawn[0]]),
            np.concatenate([population.dropped[best], drawn[1]]),
        )
        rows, losses = self._scored(model, rows, limit_ms)
        for _ in range(self.generations):
            order = np.argsort(losses, kind="stable")[: max(size // 4, 2)]
            parents = rows[0][order], rows[1][order]
            children, costs = self._scored(
                model, self._children(parents, size - len(order), rng), limit_ms
            )
            rows = (
                np.concatenate([parents[0], children[0]]),
                np.concatenate([parents[1], children[1]]),
            )
            losses = np.concatenate([losses[order], costs])
        chosen = int(np.argmin(losses))
        return Candidate(tuple(rows[0][chosen].tolist()), tuple(rows[1][chosen].tolist()))

    def _scored(
        self, model: MLPRegressor, rows: Rows, limit_ms: float
    ) -> tuple[Rows, Float[np.ndarray, " n"]]:
        """Return candidates scaled to a latency, and predictions; what does not meet it is last."""
        parts = directions(self.problem, rows[0])
        widths, keep, fits = reach_rows(self.problem, parts, rows[1], limit_ms)
        scaled = 1.0 - widths / self.problem.space.sizes, ~keep
        predicted = model.predict(self.features(*scaled))
        return scaled, np.where(fits, predicted, np.inf)

    def _drawn(self, count: int, rng: np.random.Generator) -> Rows:
        """Return random directions, with a random number of blocks dropped."""
        space = self.problem.space
        ratios = rng.random((count, len(space.sizes))) * (1.0 - space.smallest_widths / space.sizes)
        free = np.array(space.droppable, bool)
        most = len(free) if space.max_dropped is None else space.max_dropped
        share = rng.integers(0, min(most, free.sum()), count, endpoint=True) / max(free.sum(), 1)
        return ratios, free & (rng.random((count, len(free))) < share[:, None])

    def _children(self, parents: Rows, count: int, rng: np.random.Generator) -> Rows:
        """Return children of random parents: the first half mutated, the others crossed."""
        space, half = self.problem.space, count // 2
        first, second = rng.integers(0, len(parents[0]), (2, count))
        changed = mutated(
            space,
            self._grid,
            parents[0][first[:half]],
            parents[1][first[:half]],
            rng,
            probability=self.mutation_probability,
        )
        mixed = crossed(
            space,
            (parents[0][first[half:]], parents[1][first[half:]]),
            (parents[0][second[half:]], parents[1][second[half:]]),
            rng,
        )
        return np.concatenate([changed[0], mixed[0]]), np.concatenate([changed[1], mixed[1]])

    @cached_property
    def _grid(self) -> LevelGrid:
        return plateau_levels(self.problem)


def _milestone(start: int, count: int) -> int:
    """Return the largest number up to ``count`` of a sequence that grows by a tenth each time.

    >>> [_milestone(20, count) for count in (20, 21, 22, 23, 24, 25, 100)]
    [20, 20, 22, 22, 24, 24, 94]
    """
    size = start
    while (larger := size + max(size // 10, 1)) <= count:
        size = larger
    return size


@SAMPLERS.register("ofa")
def ofa(
    problem: Problem,
    *,
    seed: int,
    startup_trials: int = 20,
    hidden_units: int = 400,
    epochs: int = 60,
    population_size: int = 100,
    generations: int = 15,
    mutation_probability: float = 0.1,
) -> BaseSampler:
    """Return :class:`OnceForAll`.

    Args:
        problem: What is searched.
        seed: At least 0.
        startup_trials: Random candidates that have to be complete before there is a predictor; the
            paper's are 1,000 networks and all of the evaluations.
        hidden_units: Units of each of the predictor's three hidden layers.
        epochs: Passes over the evaluated candidates in a fit.
        population_size: Candidates of a generation of the evolution.
        generations: Generations of the evolution; the paper's are 500, from random candidates.
        mutation_probability: Probability that a gene of a mutated child is replaced.

    Raises:
        SettingsError: A number is out of its range.
    """
    return OnceForAll(
        problem,
        seed=seed,
        startup_trials=startup_trials,
        hidden_units=hidden_units,
        epochs=epochs,
        population_size=population_size,
        generations=generations,
        mutation_probability=mutation_probability,
    )
