"""What a study has evaluated, as arrays, and which of it is best.

Strategies with a population read it from here anew for every trial. So a resumed run continues as
if it had never stopped, the order in which results come does not matter, and pending and failed
trials are no members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.problem import Problem
from autoprune.strategy.residual import complete_trials, scalars
from autoprune.strategy.space import Candidate

#: Latencies that differ by less are equal; sums differ in the last digits.
_SAME = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """Evaluated candidates in the order of their trials' numbers.

    Attributes:
        trials: Their trials.
        ratios: Fraction removed per group, on the width grid.
        dropped: Whether each block is dropped.
        loss: Loss in nats.
        latency_ms: Latency in ms.
        score: How good each is for its latency, lower is better: see
            :func:`~autoprune.strategy.residual.scalars`. Without a budget it compares candidates
            of all latencies, so that they are parents for each other.
        over: It does not meet the budget; somebody else must have put it into the study.
        rough: The loss comes from few images, because the evaluation was stopped early.
        bound: There is a budget.
    """

    trials: tuple[FrozenTrial, ...]
    ratios: Float[np.ndarray, "n groups"]
    dropped: Bool[np.ndarray, "n blocks"]
    loss: Float[np.ndarray, " n"]
    latency_ms: Float[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    over: Bool[np.ndarray, " n"]
    rough: Bool[np.ndarray, " n"]
    bound: bool

    @classmethod
    def of(cls, problem: Problem, trials: Sequence[FrozenTrial]) -> Population:
        """Return the population of complete trials, as given.

        Args:
            problem: The space their parameters belong to.
            trials: With all parameters of the space, loss and latency.
        """
        space = problem.space
        raw = np.zeros((len(trials), len(space.dimensions)))
        gone = np.zeros((len(trials), len(space.blocks)), bool)
        columns = {f"ratio/{dim.group}": (raw, g) for g, dim in enumerate(space.dimensions)}
        blocks = {f"drop/{block}": (gone, b) for b, block in enumerate(space.blocks)}
        # Whole columns: a thousand trials of sixty groups take milliseconds.
        for name in space.distributions():
            matrix, column = columns[name] if name in columns else blocks[name]
            matrix[:, column] = [trial.params[name] for trial in trials]
        widths, keep = space.realise(raw, gone)
        loss, ms = np.array([trial.values for trial in trials], float).reshape(-1, 2).T
        budget = np.inf if problem.budget_ms is None else problem.budget_ms
        return cls(
            tuple(trials),
            1.0 - widths / space.sizes,
            ~keep,
            loss,
            ms,
            scalars(problem, list(trials)),
            ms > budget * (1.0 + _SAME),
            np.array([bool(t.user_attrs.get("screened", False)) for t in trials], bool),
            problem.budget_ms is not None,
        )

    def __len__(self) -> int:
        """Return how many candidates there are."""
        return len(self.trials)

    def candidate(self, index: int) -> Candidate:
        """Return one of the candidates."""
        return Candidate(tuple(self.ratios[index].tolist()), tuple(self.dropped[index].tolist()))

    def ranked(self, near_ms: float | None = None, count: int = 1) -> Int[np.ndarray, " m"]:
        """Return the indices of candidates, the best first.

        Rough ones come after those that were evaluated in full, those over the budget last.

        Args:
            near_ms: Only candidates nearest to this latency in ms, in the logarithm; ``None``
                ranks all. It makes no difference where a budget gives all the same latency.
            count: How many candidates count as near.
        """
        # Equal ones stay in the order of their numbers.
        order: Int[np.ndarray, " m"] = np.lexsort((self.score, self.rough, self.over))
        if near_ms is None or self.bound:
            return order
        distance = np.abs(np.log(self.latency_ms / near_ms))
        near = np.argsort(distance, kind="stable")[:count]
        return order[np.isin(order, near)]


def evaluated(problem: Problem, study: Study) -> Population:
    """Return the study's complete trials as a population.

    The unpruned reference is left out: it is nobody's child, and scaled to a latency it is the
    uniform network, not what made its loss low.

    Args:
        problem: The space the parameters belong to; trials that lack some are left out.
        study: Trials of any state, told in any order.
    """
    trials = complete_trials(problem, study)
    return Population.of(problem, [t for t in trials if not t.user_attrs.get("dense", False)])
