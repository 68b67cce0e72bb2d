"""A one-parameter family of candidates, tried at ever more latencies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.budget import Points, first_within, project
from autoprune.strategy.problem import Problem
from autoprune.strategy.sampler import seen_params
from autoprune.strategy.space import Candidate

#: The family counts as exhausted when this many rungs in a row give nothing new.
_IDLE = 32


class Ladder:
    """One candidate of a family per target latency, the targets ever denser.

    The first targets are the budget (without one, the unpruned network's latency) and the fastest
    candidate's, every later one halves the widest gap in log latency (van der Corput's order).
    A rung is the first point of the family within its target, completed as
    :func:`~autoprune.strategy.budget.project` does: coarse steps give back what they removed
    needlessly, and what the family cannot reach is scaled further.
    """

    def __init__(self, problem: Problem, path: Callable[[Float[np.ndarray, " n"]], Points]) -> None:
        """Store parameters.

        Args:
            problem: Supplies latency and budget.
            path: The family: positions to widths and kept blocks, from the unpruned network at 0
                to the most pruned at 1.
        """
        self.problem = problem
        self.path = path
        # Both follow from problem and path alone, so they may be lost at any time.
        self._rungs: dict[int, Candidate] = {}
        self._params: dict[Candidate, tuple[float | bool, ...]] = {}

    def first_new(self, study: Study, trial: FrozenTrial) -> Candidate:
        """Return the first rung that the study does not have.

        Where the family is exhausted that is one of its rungs, another for every trial.
        """
        seen = seen_params(self.problem, study, trial)
        tried: dict[Candidate, None] = {}
        index = idle = 0
        # Every distinct rung that is passed is in the study, so this ends.
        while idle < _IDLE:
            candidate = self.rung(index)
            if self._params[candidate] not in seen:
                return candidate
            idle = idle + 1 if candidate in tried else 0
            tried[candidate] = None
            index += 1
        return list(tried)[trial.number % len(tried)]

    def rung(self, index: int) -> Candidate:
        """Return the candidate of the target with that index."""
        if index not in self._rungs:
            target_ms = self._target_ms(index)
            found = first_within(self.problem, self.path, target_ms)
            candidate = self.problem.space.candidates(*(found or self.path(np.ones(1))))[0]
            rung = project(self.problem, candidate, budget_ms=target_ms)
            self._rungs[index] = rung
            self._params[rung] = tuple(self.problem.space.params(rung).values())
        return self._rungs[index]

    def _target_ms(self, index: int) -> float:
        floor = self.problem.fastest[1]
        top = min(self.problem.dense_ms, self.problem.budget_ms or math.inf)
        share = corput(index)
        return max(math.exp((1.0 - share) * math.log(top) + share * math.log(floor)), floor)


def corput(index: int) -> float:
    """Return 0, 1, 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8, ...: van der Corput's sequence with ends.

    >>> [corput(index) for index in range(6)]
    [0.0, 1.0, 0.5, 0.25, 0.75, 0.125]
    """
    if index < 2:
        return float(index)
    digits = bin(index - 1)[2:]
    return float(int(digits[::-1], 2) / 2 ** len(digits))
