"""Lets strategies that know one cost seek the front of several: along one direction per trial."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autoprune.strategy.goals import LATENCY, Cost, Limit
from autoprune.strategy.problem import Problem

#: With two costs, these weights of the lesser one; with more, a cost counts or does not.
_WEIGHTS_OF_TWO = (1.0, 0.5, 0.0)
_WEIGHTS = (1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Direction:
    """One cost in place of several: the largest of the weighted ones.

    Attributes:
        problem: Supplies the costs.
        weights: Of each cost as a fraction of the unpruned network's; the largest is 1.
    """

    problem: Problem
    weights: tuple[float, ...]

    def __call__(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return the cost of candidates, see :meth:`of`."""
        costs = [
            cost.values(widths, keep) if weight else np.zeros(len(widths))
            for cost, weight in zip(self.problem.objectives, self.weights, strict=True)
        ]
        return self.of(np.stack(costs, axis=1))

    def of(self, costs: Float[np.ndarray, "n costs"]) -> Float[np.ndarray, " n"]:
        """Return the one cost; in ms, the unpruned network's own where all weights are 1."""
        parts = costs / self.problem.dense_costs * np.array(self.weights)
        largest: Float[np.ndarray, " n"] = parts.max(axis=1) * self.problem.dense_ms
        return largest

    @property
    def only(self) -> Cost | None:
        """The single cost that counts, ``None`` where several do."""
        counted = [c for c, w in zip(self.problem.objectives, self.weights, strict=True) if w]
        return counted[0] if len(counted) == 1 else None

    @property
    def view(self) -> Problem:
        """The problem with this cost as its latency.

        A budget is one where the latency alone counts, else a limit as others are.
        """
        problem, only = self.problem, self.only
        if only is not None and only.name == LATENCY:
            return dataclasses.replace(problem, costs=())
        limits = problem.limits
        if problem.budget_ms is not None:
            limits += (Limit(Cost(LATENCY, problem.latency), problem.budget_ms),)
        return dataclasses.replace(problem, latency=self, budget_ms=None, costs=(), limits=limits)


def directions(costs: int) -> list[tuple[float, ...]]:
    """Return the directions in which several costs are searched, that of all alike first.

    >>> directions(2)
    [(1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (0.5, 1.0), (0.0, 1.0)]
    """
    weights = _WEIGHTS_OF_TWO if costs == 2 else _WEIGHTS
    return [chosen for chosen in itertools.product(weights, repeat=costs) if max(chosen) == 1.0]


class Rotation(BaseSampler):
    """Runs one sampler per direction of costs, all on the same study, in random order.

    The hypervolume of several costs is the mean, over all vectors of budgets, of the best that is
    reached within them. In polar form that is an integral over directions of the area under one
    front each: the best loss within budgets in fixed proportion, against their common size. A
    network is within them exactly if the largest of its weighted costs is. So for each direction
    there is a problem with one cost, and what a sampler adds to its front it adds to the whole
    (the weighted Chebyshev method, by which every point of a front can be found [Steuer1983]).

    Every sampler sees all trials, under its own cost; what another one noted with a trial it does
    not see. In each round of as many trials as there are directions each has its turn, in an order
    that seed and round decide.

    References:
        [Steuer1983] Steuer, Choo. An Interactive Weighted Tchebycheff Procedure for Multiple
        Objective Programming. Mathematical Programming 26, 1983.
    """

    def __init__(
        self, problem: Problem, make: Callable[[Problem], BaseSampler], *, seed: int
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            make: Returns the sampler of a problem with one cost.
            seed: At least 0; decides the order of directions.
        """
        self.problem = problem
        self.seed = seed
        self.directions = [Direction(problem, w) for w in directions(len(problem.objectives))]
        self.samplers = [make(direction.view) for direction in self.directions]
        self.doing = ""

    def turn(self, number: int) -> int:
        """Return the index of the direction whose turn a trial is."""
        count = len(self.directions)
        order = np.random.default_rng([self.seed, number // count]).permutation(count)
        return int(order[number % count])

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the direction's sampler proposes together."""
        sampler, shown = self._of(study, trial)
        return sampler.infer_relative_search_space(shown, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return what the direction's sampler proposes."""
        sampler, shown = self._of(study, trial)
        proposed = sampler.sample_relative(shown, trial, search_space)
        self.doing = str(getattr(sampler, "doing", ""))
        return proposed

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the direction's sampler's value."""
        sampler, shown = self._of(study, trial)
        return sampler.sample_independent(shown, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the direction's sampler."""
        sampler, shown = self._of(study, trial)
        sampler.before_trial(shown, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the direction's sampler."""
        sampler, shown = self._of(study, trial)
        scalar = None if values is None else shown.scalar(values)
        sampler.after_trial(shown, trial, state, scalar)

    def reseed_rng(self) -> None:
        """Tell all samplers."""
        for sampler in self.samplers:
            sampler.reseed_rng()

    def _of(self, study: Study, trial: FrozenTrial) -> tuple[BaseSampler, DirectionStudy]:
        index = self.turn(trial.number)
        shown = DirectionStudy(
            study, self.directions[index], mine=lambda number: self.turn(number) == index
        )
        return self.samplers[index], shown


class DirectionStudy(Study):
    """A study as a sampler of one direction sees it: two values per trial."""

    def __init__(self, study: Study, direction: Direction, *, mine: Callable[[int], bool]) -> None:
        """Look at the same storage.

        Args:
            study: Loss and all costs.
            direction: Which cost is shown.
            mine: Whose number's notes are shown.
        """
        super().__init__(study.study_name, study._storage, sampler=study.sampler)
        self._directions = [StudyDirection.MINIMIZE] * 2
        self.direction_of_costs = direction
        self.mine = mine

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return copies of the trials with loss and one cost."""
        return [self._shown(trial) for trial in super().get_trials(deepcopy, states)]

    def scalar(self, values: Sequence[float]) -> list[float]:
        """Return loss and one cost."""
        costs = np.array([values[1:]], float)
        return [values[0], float(self.direction_of_costs.of(costs)[0])]

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        shown = copy.copy(trial)
        if trial.values is not None:
            shown.values = self.scalar(trial.values)
        if not self.mine(trial.number):
            shown.system_attrs = {}
        return shown
