"""NetAdapt: every step saves the same latency, the group goes that hurts least for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.samplers import BaseSampler

from autoprune.strategy.greedy import GreedySampler, Move, State, drops, narrowings
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS


class NetAdapt(GreedySampler):
    """Tries for every group the widest width that saves the step's latency [Yang2018netadapt].

    The move with the smallest loss increase per ms saved is committed. The step is a fraction of
    the dense latency and shrinks geometrically, as published.

    Ours are: the exact latency of the whole network stands for the table of layers; short
    fine-tuning is replaced by the run's realisation; a group that cannot save the step with half
    of its units moves as far as that, where the published method leaves it out (in a network of
    sixty groups it would leave out most); a removable block may be dropped in place of a step; old
    losses spare evaluations (``lazy``); and a budget is met as
    :class:`~autoprune.strategy.greedy.GreedySampler` says.

    References:
        [Yang2018netadapt] Yang, Howard, Chen, Zhang, Go, Sandler, Sze, Adam. NetAdapt:
        Platform-Aware Neural Network Adaptation for Mobile Applications. ECCV 2018.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        step: float,
        decay: float,
        most: float,
        per_ms: bool,
        lazy: bool,
    ) -> None:
        """Store parameters; see :func:`netadapt`."""
        super().__init__(problem, seed=seed, per_ms=per_ms, lazy=lazy)
        self.step = step
        self.decay = decay
        self.most = most

    def moves(self, state: State, step: int) -> Sequence[Move]:
        """Return for every group the widest width that saves the step, and every block dropped."""
        problem, space = self.problem, self.problem.space
        saving = self.step * self.decay**step * problem.dense_ms
        # The last step goes to the budget and not beyond.
        limit = max(state.latency_ms - saving, problem.budget_ms or 0.0)
        widths = space.widths([state.candidate])[0]
        # At least the next width of the grid stays open.
        below = np.minimum(np.ceil(widths * (1.0 - self.most)), widths - 1)
        floor = np.maximum(below // space.multiples * space.multiples, space.smallest_widths)
        narrower = narrowings(
            problem, state, floor=floor.astype(np.int64), ceiling=widths, limit_ms=limit
        )
        return [*narrower, *drops(problem, state)]


@SAMPLERS.register("netadapt")
def netadapt(
    problem: Problem,
    *,
    seed: int,
    step: float = 0.025,
    decay: float = 0.96,
    most: float = 0.5,
    per_ms: bool = True,
    lazy: bool = True,
) -> BaseSampler:
    """Return :class:`NetAdapt`.

    Args:
        problem: What is searched.
        seed: At least 0; it decides how repeats are varied.
        step: Latency the first move saves, as a fraction of the unpruned network's.
        decay: Factor on the step after every move.
        most: Largest fraction of its units that a group loses in one move.
        per_ms: Commit the move with the smallest loss increase per ms saved; ``False`` takes the
            smallest loss. Without effect where there is a budget.
        lazy: Evaluate a move again only where it could be the best; ``False`` evaluates every move
            at every step, as published.
    """
    return NetAdapt(problem, seed=seed, step=step, decay=decay, most=most, per_ms=per_ms, lazy=lazy)
