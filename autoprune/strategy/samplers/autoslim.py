"""AutoSlim's greedy slimming: the group goes that hurts least."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.samplers import BaseSampler

from autoprune.strategy.greedy import GreedySampler, Move, State, drops, narrowings
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS


class AutoSlim(GreedySampler):
    """Makes one group narrower at a time: the one with the smallest loss after it [Yu2019autoslim].

    As published all groups are tried by the same number of channels each, by default an eighth of
    their full width. Ours are: the trained super-network is replaced by the run's realisation,
    a removable block may be dropped in place of a step, a step that saves no latency on the device
    goes on to the next one that does, old losses spare evaluations (``lazy``), and a budget is
    met as :class:`~autoprune.strategy.greedy.GreedySampler` says.

    References:
        [Yu2019autoslim] Yu, Huang. AutoSlim: Towards One-Shot Architecture Search for Channel
        Numbers. arXiv:1903.11728, 2019.
    """

    def __init__(
        self, problem: Problem, *, seed: int, step: float, per_ms: bool, lazy: bool
    ) -> None:
        """Store parameters; see :func:`autoslim`."""
        super().__init__(problem, seed=seed, per_ms=per_ms, lazy=lazy)
        self.step = step

    def moves(self, state: State, step: int) -> Sequence[Move]:
        """Return one step down for every group, and every block dropped."""
        space = self.problem.space
        widths = space.widths([state.candidate])[0]
        ceiling = np.maximum(
            np.floor(widths - self.step * space.sizes).astype(np.int64), space.smallest_widths
        )
        narrower = narrowings(
            self.problem,
            state,
            floor=space.smallest_widths,
            ceiling=ceiling,
            limit_ms=state.latency_ms,
        )
        return [*narrower, *drops(self.problem, state)]


@SAMPLERS.register("autoslim")
def autoslim(
    problem: Problem,
    *,
    seed: int,
    step: float = 0.125,
    per_ms: bool = False,
    lazy: bool = True,
) -> BaseSampler:
    """Return :class:`AutoSlim`.

    Args:
        problem: What is searched.
        seed: At least 0; it decides how repeats are varied.
        step: Fraction of its full width that a group loses in a move, at least one width.
        per_ms: Commit the move with the smallest loss increase per ms saved in place of the
            smallest loss; without effect where there is a budget.
        lazy: Evaluate a move again only where it could be the best; ``False`` evaluates every move
            at every step, as published.
    """
    return AutoSlim(problem, seed=seed, step=step, per_ms=per_ms, lazy=lazy)
