"""Starts any sampler with what the damage curves alone would choose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoprune.strategy.allocation import Allocator
from autoprune.strategy.budget import project
from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.problem import Problem
from autoprune.strategy.sampler import seen_params
from autoprune.strategy.space import Candidate


def anchors(problem: Problem, count: int) -> tuple[Candidate, ...]:
    """Return the candidates of least expected damage at several latencies, the slowest first.

    The latencies are even in the logarithm, from the budget (without one, the unpruned network's
    latency, which itself needs no anchor) towards that of the fastest candidate. Where two are the
    same candidate there are fewer.

    Args:
        problem: Space, latency and damage; without it, the squares of the ratios.
        count: How many latencies.
    """
    low = problem.fastest[1]
    budget = problem.budget_ms
    top = max(problem.dense_ms if budget is None else min(budget, problem.dense_ms), low)
    steps = np.maximum(np.geomspace(low, top, count + 1)[::-1], low)
    limits = steps[1:] if budget is None else np.append(top, steps[1:-1])
    allocator = Allocator(problem)
    costs = Costs.of_damage(allocator.grid, problem.damage or Damage.quadratic(problem.space))
    found = [allocator.solve(costs, float(limit)) for limit in limits[:count]]
    return tuple(dict.fromkeys(project(problem, candidate) for candidate in found))


class WarmStart(BaseSampler):
    """Proposes anchors while the study lacks any, then what another sampler proposes.

    Anchors are trials like others: they count, are evaluated and teach the other sampler. Which
    come next is read from the study, so a resumed run goes on where it stopped.
    """

    def __init__(self, problem: Problem, sampler: BaseSampler, *, count: int) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            sampler: Proposes after the anchors; asked beside them too, since some samplers note in
                the study to which generation a trial belongs.
            count: How many anchors.
        """
        self.problem = problem
        self.sampler = sampler
        self.count = count
        self.doing = ""

    @cached_property
    def anchors(self) -> tuple[Candidate, ...]:
        """What is proposed first."""
        return anchors(self.problem, self.count)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters of the search space and what else the other sampler wants."""
        wanted = self.sampler.infer_relative_search_space(study, trial)
        return self.problem.space.distributions() | wanted

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the next anchor, or the other sampler's."""
        wanted = self.sampler.infer_relative_search_space(study, trial)
        proposed = self.sampler.sample_relative(study, trial, wanted)
        space = self.problem.space
        seen = seen_params(self.problem, study, trial)
        for anchor in self.anchors:
            params = space.params(anchor)
            if params and tuple(params.values()) not in seen:
                self.doing = "warm start: least expected damage at one latency"
                return proposed | params
        self.doing = str(getattr(self.sampler, "doing", ""))
        return proposed

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the other sampler's value."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the other sampler."""
        self.sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the other sampler."""
        self.sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Tell the other sampler."""
        self.sampler.reseed_rng()
