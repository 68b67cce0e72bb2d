"""The same ratio for every group: the simplest baseline, and a hard one to beat by chance."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.budget import project
from autoprune.strategy.ladder import corput
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler, seen_params
from autoprune.strategy.space import Candidate

#: Most distinct uniform candidates to tell apart per number of dropped blocks.
_MOST = 2048


class UniformLadder(CandidateSampler):
    """Proposes one ratio for all groups, on ever finer divisions of the ratios within the budget.

    The first proposals are the least and the most pruned uniform candidates; every later one
    halves the widest gap (van der Corput's order), so that any number of trials covers the whole
    interval. Where the network is exhausted at full depth, the ladder goes on with one block
    dropped, then two, evenly spread over the depth. When all are used up proposals repeat.
    """

    adjusts = False

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the first candidate of the ladder that the study does not have."""
        seen = seen_params(self.problem, study, trial)
        for candidate in self.ladder:
            if tuple(self.problem.space.params(candidate).values()) not in seen:
                return candidate
        return self.ladder[trial.number % len(self.ladder)]

    @cached_property
    def ladder(self) -> tuple[Candidate, ...]:
        """Every uniform candidate within the budget, coarsest division first."""
        rungs: list[Candidate] = []
        for dropped in self._depths():
            rungs.extend(self._ladder_at(dropped))
        if not rungs:
            # The budget needs more than uniform pruning can give.
            rungs = [project(self.problem, self.problem.space.smallest(), fill=False)]
        return tuple(dict.fromkeys(rungs))

    def _depths(self) -> Iterator[Bool[np.ndarray, " blocks"]]:
        """Yield which blocks are dropped: none, then one more each time, evenly spread."""
        space = self.problem.space
        droppable = np.flatnonzero(space.droppable)
        most = len(droppable) if space.max_dropped is None else space.max_dropped
        for count in range(min(most, len(droppable)) + 1):
            dropped = np.zeros(len(space.blocks), bool)
            # The middles of as many equal parts.
            dropped[droppable[(2 * np.arange(count) + 1) * len(droppable) // (2 * count or 1)]] = 1
            yield dropped

    def _ladder_at(self, dropped: Bool[np.ndarray, " blocks"]) -> list[Candidate]:
        problem, space = self.problem, self.problem.space
        ratios = self._distinct_ratios()
        largest = 1.0 - space.smallest_widths / space.sizes
        widths, keep = space.realise(
            np.minimum(ratios[:, None], largest), np.repeat(dropped[None], len(ratios), axis=0)
        )
        fits = np.ones(len(ratios), bool)
        if problem.budget_ms is not None:
            fits = problem.predict(widths, keep) <= problem.budget_ms
        # Of ratios with the same widths the first stays.
        new = np.append(True, (np.diff(widths, axis=0) != 0).any(axis=1))
        rows = np.flatnonzero(fits & new)
        order = rows[_refinement(ratios[rows])]
        return space.candidates(widths[order], keep[order])

    def _distinct_ratios(self) -> Float[np.ndarray, " n"]:
        """Return ratios, ascending, among which every distinct uniform candidate occurs."""
        changes = [np.zeros(1)]
        for dim in self.problem.space.dimensions:
            # Between two neighbouring widths the nearest one changes halfway.
            changes.append(1.0 - (dim.widths[1:] + dim.widths[:-1]) / (2.0 * dim.size))
        edges = np.unique(np.concatenate([*changes, [1.0]]))
        middles = np.append(0.0, (edges[1:] + edges[:-1]) / 2.0)
        if len(middles) > _MOST:
            middles = middles[np.linspace(0, len(middles) - 1, _MOST).astype(np.int64)]
        return middles


def _refinement(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the order in which nested refinement of the interval visits ascending values.

    >>> _refinement(np.array([0.0, 0.1, 0.2, 0.3, 0.4])).tolist()
    [0, 4, 2, 1, 3]
    """
    order: list[int] = []
    free = np.ones(len(values), bool)
    index = 0
    while free.any():
        target = values[0] + corput(index) * (values[-1] - values[0])
        nearest = int(np.argmin(np.where(free, np.abs(values - target), np.inf)))
        order.append(nearest)
        free[nearest] = False
        index += 1
    return np.array(order, np.int64)


@SAMPLERS.register("uniform")
def uniform(problem: Problem, *, seed: int) -> BaseSampler:
    """Return :class:`UniformLadder`.

    Args:
        problem: What is searched.
        seed: Not used: nothing about the ladder is random.
    """
    return UniformLadder(problem, seed=seed)
