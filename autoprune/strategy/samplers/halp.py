"""Most importance within each latency: a knapsack per budget, and nothing learned."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.allocation import Allocator
from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS, wants_damage
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate

#: Multiples of the golden ratio's fraction fill an interval evenly, however many there are.
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class LatencySaliency(CandidateSampler):
    """Proposes what keeps the most importance within ever more latencies.

    HALP [Shen2022halp] removes blocks of channels by a knapsack of importance against latency, on
    targets that fall exponentially while the network trains. Here each target is a proposal of its
    own, spread evenly over the logarithm of the latency, the budget first where there is one. The
    saving of a layer depends on both of its widths here, where HALP counts it with the other
    widths as they are.

    References:
        [Shen2022halp] Shen, Yin, Molchanov, Mao, Liu, Alvarez. Structural Pruning via
        Latency-Saliency Knapsack. NeurIPS 2022.
    """

    @cached_property
    def _solver(self) -> tuple[Allocator, Costs]:
        allocator = Allocator(self.problem)
        damage = self.problem.damage or Damage.quadratic(self.problem.space)
        return allocator, Costs.of_damage(allocator.grid, damage)

    def target_ms(self, number: int) -> float:
        """Return the latency that a trial aims at."""
        fastest, budget = self.problem.fastest[1], self.problem.budget_ms
        top = max(min(budget or self.problem.dense_ms, self.problem.dense_ms), fastest)
        # The budget itself comes first; the unpruned network would be nothing new.
        share = (number * _GOLDEN if budget else number * _GOLDEN + 0.5) % 1.0
        target: float = max(fastest * (top / fastest) ** (share or 1.0), fastest)
        return target

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the solution for the trial's target; nothing is learned from the study."""
        allocator, costs = self._solver
        return allocator.solve(costs, self.target_ms(trial.number))


@wants_damage("taylor")
@SAMPLERS.register("halp")
def halp(problem: Problem, *, seed: int) -> BaseSampler:
    """Return :class:`LatencySaliency` on first-order Taylor importance.

    Args:
        problem: What is searched.
        seed: At least 0; only used to vary what repeats.
    """
    return LatencySaliency(problem, seed=seed)
