"""One threshold on the importance of all units: the baseline of every pruning paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from jaxtyping import Float
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import UnknownNameError
from autoprune.strategy.budget import Points
from autoprune.strategy.ladder import Ladder
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate

#: Makes the scores of different groups comparable; none of them changes the order in a group.
NORMALISE: dict[str, Callable[[Float[np.ndarray, " units"]], Float[np.ndarray, " units"]]] = {
    "mean": lambda scores: scores / max(float(scores.mean()), 1e-30),
    "max": lambda scores: scores / max(float(scores.max()), 1e-30),
    "sum": lambda scores: scores / max(float(scores.sum()), 1e-30),
    "norm": lambda scores: scores / max(float(np.linalg.norm(scores)), 1e-30),
    "standardise": lambda scores: (scores - scores.min()) / max(float(np.ptp(scores)), 1e-30),
    "none": lambda scores: scores,
}


class GlobalThreshold(CandidateSampler):
    """Removes every unit whose normalised score is below one threshold for all groups.

    The threshold is found on the exact latency for each rung of a
    :class:`~autoprune.strategy.ladder.Ladder` of targets. Widths are the numbers of units that
    stay, moved to the grid and to what the space allows. Blocks stay, unless a target needs more
    than widths can give.

    Scores are the problem's. A group without any counts as one of evenly spaced scores, so that
    without any scores at all every group loses the same fraction.
    """

    def __init__(self, problem: Problem, *, seed: int, normalise: str) -> None:
        """Store parameters; see :func:`global_threshold`."""
        super().__init__(problem, seed=seed)
        self.normalise = normalise
        self._ladder = Ladder(problem, self.path)

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the first rung that the study does not have."""
        return self._ladder.first_new(study, trial)

    def path(self, positions: Float[np.ndarray, " n"]) -> Points:
        """Return widths at thresholds; position p removes that fraction of all units, or less."""
        space = self.problem.space
        count = len(self._all_scores)
        # As many of the lowest scores lie below the threshold as the position says.
        below = np.ceil(positions * count).astype(np.int64)
        thresholds = np.append(self._all_scores, np.inf)[np.minimum(below, count)]
        gone = [np.searchsorted(scores, thresholds) for scores in self._scores]
        ratios = np.stack(gone, axis=1) / space.sizes
        return space.realise(ratios, np.zeros((len(positions), len(space.blocks)), bool))

    @cached_property
    def _scores(self) -> list[Float[np.ndarray, " _"]]:
        """Normalised scores of each group, ascending."""
        found = []
        for dim in self.problem.space.dimensions:
            scores = self.problem.scores.get(dim.group, np.arange(1.0, dim.size + 1.0))
            found.append(np.sort(NORMALISE[self.normalise](np.asarray(scores, float))))
        return found

    @cached_property
    def _all_scores(self) -> Float[np.ndarray, " units"]:
        return np.sort(np.concatenate([*self._scores, np.zeros(0)]))


@SAMPLERS.register("global_threshold")
def global_threshold(problem: Problem, *, seed: int, normalise: str = "mean") -> BaseSampler:
    """Return :class:`GlobalThreshold`.

    Args:
        problem: What is searched.
        seed: At least 0; it decides how repeats are varied.
        normalise: What a group's scores are divided by: their ``"mean"``, ``"max"``, ``"sum"``,
            Euclidean ``"norm"`` or ``"none"``; or ``"standardise"`` to the interval from 0 to 1.

    Raises:
        UnknownNameError: No such normalisation.
    """
    if normalise not in NORMALISE:
        raise UnknownNameError("normalisation", normalise, NORMALISE)
    return GlobalThreshold(problem, seed=seed, normalise=normalise)
