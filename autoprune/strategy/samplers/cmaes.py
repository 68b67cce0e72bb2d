"""CMA-ES over directions of pruning; the latency decides how far to go in them."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.problem import Problem
from autoprune.strategy.rays import on_ray
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.residual import complete_trials, scalars
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import target_ms

#: A direction and which blocks go with it, as the distribution draws it and is told of it.
Point = tuple[Float[np.ndarray, " dims"], Bool[np.ndarray, " blocks"]]


class DirectionEvolution(CandidateSampler):
    """Adapts a normal distribution of directions, and a probability for each block to be dropped.

    CMA-ES [Hansen2016cmaes] minimises one number over real vectors, so three things are settled for
    it here. A vector is a direction: the ratios of all groups in proportion, scaled until the
    candidate meets a latency, which is the budget or, without one, runs evenly through the range
    in the logarithm. What is minimised is :func:`~autoprune.strategy.residual.scalars`. Blocks are
    no real numbers: where some may be dropped, the distribution is CatCMA's [Hamano2024catcma],
    which has a categorical part beside the normal one.

    No state is kept and none is pickled into the study, as Optuna's own CMA-ES does it: all
    complete trials in the order of their numbers, whoever proposed them, are cut into generations
    and told to a new distribution. Vectors that it would hardly have drawn itself are pulled
    towards its mean, as injected solutions are [Hansen2011injecting].

    References:
        [Hansen2016cmaes] Hansen. The CMA Evolution Strategy: A Tutorial. arXiv 1604.00772, 2016.
        [Hamano2024catcma] Hamano, Saito, Nomura, Uchida, Shirakawa. CatCMA: Stochastic Optimization
        for Mixed-Category Problems. GECCO 2024.
        [Hansen2011injecting] Hansen. Injecting External Solutions Into CMA-ES. INRIA RR-7748, 2011.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        population_size: int | None = None,
        sigma: float = 1.0 / 6.0,
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            population_size: Complete trials per generation; ``None`` is the tutorial's number,
                4 + 3 log(parameters) rounded down.
            sigma: First standard deviation of a direction's entries, which lie in [0, 1].

        Raises:
            SettingsError: A number is too small, or the package ``cmaes`` is missing.
        """
        super().__init__(problem, seed=seed)
        space = problem.space
        self.groups = np.flatnonzero(space.smallest_widths < space.sizes)
        self.blocks = (
            np.flatnonzero(space.droppable) if space.max_dropped != 0 else np.zeros(0, int)
        )
        dims = len(self.groups) + len(self.blocks)
        usual = 4 + math.floor(3 * math.log(max(dims, 1)))
        self.population_size = usual if population_size is None else population_size
        self.sigma = sigma
        if self.population_size < 4 or sigma <= 0:
            raise SettingsError(
                "sampler 'cmaes': expected population_size of at least 4 and sigma above 0, "
                f"got {self.population_size} and {sigma}"
            )
        self._cmaes = _package()

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return a candidate in a direction that the distribution draws."""
        state = self._evolved(complete_trials(self.problem, study))
        state.reseed_rng(int(rng.integers(2**31)))
        drawn, drops = _point(state.ask())
        space = self.problem.space
        direction = np.zeros(len(space.dimensions))
        direction[self.groups] = drawn[: len(self.groups)]
        dropped = np.zeros(len(space.blocks), bool)
        dropped[self.blocks] = drops
        return on_ray(self.problem, direction, dropped, target_ms(self.problem, trial.number))

    def _evolved(self, trials: list[FrozenTrial]) -> Any:
        """Return the distribution after all whole generations of the trials."""
        state = self._new()
        told = [t for t in trials if self._direction(t, state.mean) is not None]
        size = self.population_size
        for end in range(size, len(told) + 1, size):
            # Values of a generation come from the trials up to its end: later ones change no past.
            values = scalars(self.problem, told[:end])[end - size :]
            solutions = []
            for trial, value in zip(told[end - size : end], values.tolist(), strict=True):
                point = self._direction(trial, state.mean)
                if point is not None:
                    solutions.append((self._nearer(state, point), value))
            state.tell(solutions)
            state._mean = np.clip(state._mean, 0.0, 1.0)
        return state

    def _new(self) -> Any:
        """Return the distribution before any trial: half of the largest ratios, few drops."""
        space = self.problem.space
        # The package wants two real dimensions at least; those beyond the groups do nothing.
        mean = np.full(max(len(self.groups), 2), 0.5)
        options: dict[str, Any] = {
            "mean": mean,
            "sigma": self.sigma,
            "bounds": np.tile([0.0, 1.0], (len(mean), 1)),
            "seed": self.seed,
            "population_size": self.population_size,
        }
        if not len(self.blocks):
            return self._cmaes.CMA(**options)
        most = len(self.blocks) if space.max_dropped is None else space.max_dropped
        share = min(most / (2.0 * len(self.blocks)), 0.5)
        return self._cmaes.CatCMA(
            cat_num=np.full(len(self.blocks), 2),
            cat_param=np.tile([1.0 - share, share], (len(self.blocks), 1)),
            **options,
        )

    def _direction(self, trial: FrozenTrial, mean: Float[np.ndarray, " dims"]) -> Point | None:
        """Return a trial's direction, scaled to the mean's length; ``None`` if it has none.

        Groups that are gone with their block say nothing: they stay where the mean is.
        """
        space = self.problem.space
        candidate = space.candidate(trial.params)
        active = space.active(~np.array([candidate.dropped], bool))[0][self.groups]
        largest = (1.0 - space.smallest_widths / space.sizes)[self.groups]
        ratios = np.array(candidate.ratios)[self.groups] / largest
        length = float(np.linalg.norm(ratios[active]))
        if length == 0.0 and len(self.groups):
            return None
        point = mean.copy()
        inside = np.flatnonzero(active)
        if length > 0.0:
            scale = float(np.linalg.norm(mean[inside])) / length
            point[inside] = np.minimum(ratios[active] * scale, 1.0)
        return point, np.array(candidate.dropped, bool)[self.blocks]

    def _nearer(self, state: Any, point: Point) -> Any:
        """Return the point as the package wants it, no farther out than a draw would be."""
        vector, drops = point
        basis, lengths = state._eigen_decomposition()
        away = (vector - state._mean) / state._sigma
        distance = float(np.linalg.norm(basis.T @ away / lengths))
        dims = len(vector)
        limit = math.sqrt(dims) + 2.0 * dims / (dims + 2.0)
        if distance > limit:
            vector = state._mean + (vector - state._mean) * (limit / distance)
        if not len(self.blocks):
            return vector
        return vector, np.stack([~drops, drops], axis=1)


def _point(asked: Any) -> Point:
    """Return what the package drew as a vector and which blocks go."""
    if isinstance(asked, tuple):
        return asked[0], asked[1][:, 1].astype(bool)
    return asked, np.zeros(0, bool)


def _package() -> ModuleType:
    try:
        return importlib.import_module("cmaes")
    except ModuleNotFoundError:
        raise SettingsError(
            "sampler 'cmaes' needs the package cmaes: `pip install 'autoprune[samplers]'`; or take "
            "one that needs nothing, such as 'tpe' or 'nsga2'"
        ) from None


@SAMPLERS.register("cmaes")
def cmaes(
    problem: Problem,
    *,
    seed: int,
    population_size: int | None = None,
    sigma: float = 1.0 / 6.0,
) -> BaseSampler:
    """Return :class:`DirectionEvolution`.

    Args:
        problem: What is searched.
        seed: At least 0.
        population_size: Complete trials per generation; ``None`` is 4 + 3 log(parameters).
        sigma: First standard deviation of a direction's entries, which lie in [0, 1].
    """
    return DirectionEvolution(problem, seed=seed, population_size=population_size, sigma=sigma)
