"""Any Optuna sampler, made to respect the budget and all other limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import SettingsError
from autoprune.strategy.problem import Problem
from autoprune.strategy.rays import random_candidate
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.residual import scalar_study
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate

__all__ = ["ProjectedSampler", "build_sampler"]


class ProjectedSampler(CandidateSampler):
    """Wraps an Optuna sampler: its proposals are snapped and projected before they are evaluated.

    The study stores the projected parameters, so the wrapped sampler learns from what was
    evaluated and not from what it asked for.

    A new sampler is made for every trial, seeded by the trial's number. Optuna's samplers keep
    what they learn in the study, so nothing is lost, and a resumed run does not repeat its first
    proposals as it would with one sampler of a fixed seed.

    Optuna's samplers start with independent uniform draws, which in many dimensions all have
    about the same latency. The first candidates are drawn over the whole range of latencies
    instead (:func:`~autoprune.strategy.rays.random_candidate`).
    """

    def __init__(
        self,
        problem: Problem,
        make: Callable[[int], BaseSampler],
        *,
        seed: int,
        startup_trials: int = 10,
        scalar: bool = False,
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            make: Returns the wrapped sampler for a seed.
            seed: At least 0.
            startup_trials: Trials that have to be complete before the wrapped sampler's own
                proposals are used; best as many as it would draw at random.
            scalar: The wrapped sampler is shown one objective instead of loss and latency, see
                :func:`~autoprune.strategy.residual.scalars`. It must learn from the trials alone,
                not from what it stored beside them.

        Raises:
            SettingsError: The wrapped sampler refuses its options.
        """
        super().__init__(problem, seed=seed)
        try:
            make(seed % 2**31)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"the sampler refuses its options: {error}") from error
        self.make = make
        self.startup_trials = startup_trials
        self.scalar = scalar

    @property
    def joint(self) -> bool:
        """Whether the wrapped sampler is shown all objectives of the study."""
        return not self.scalar

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the wrapped sampler's proposal, or a random candidate to start with."""
        wrapped = self.make(int(rng.integers(2**31)))
        if self.scalar:
            return self._scalar_proposal(wrapped, study, rng)
        wrapped.before_trial(study, trial)
        relative = wrapped.infer_relative_search_space(study, trial)
        # Asked at the start as well: genetic samplers note a trial's generation here.
        sampled = wrapped.sample_relative(study, trial, relative)
        if not self._started(study):
            return self._start(rng)
        self.doing = f"{type(wrapped).__name__} proposes"
        params = {
            name: sampled[name]
            if name in sampled
            else wrapped.sample_independent(study, trial, name, distribution)
            for name, distribution in self.problem.space.distributions().items()
        }
        return self.problem.space.candidate(params)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the wrapped sampler's value of a parameter that is not the search space's."""
        wrapped = self._made_for(trial, param_name)
        return wrapped.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the wrapped sampler store what it learns in the study."""
        if not self.scalar:
            self._made_for(trial, "").after_trial(study, trial, state, values)

    def _started(self, study: Study) -> bool:
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return len(complete) >= self.startup_trials

    def _start(self, rng: np.random.Generator) -> Candidate:
        self.doing = f"the first {self.startup_trials} at random, over all latencies"
        return random_candidate(self.problem, rng)

    def _scalar_proposal(
        self, wrapped: BaseSampler, study: Study, rng: np.random.Generator
    ) -> Candidate:
        if not self._started(study):
            return self._start(rng)
        self.doing = f"{type(wrapped).__name__} proposes"
        copy = scalar_study(self.problem, study)
        copy.sampler = wrapped
        asked = copy.ask(self.problem.space.distributions())
        return self.problem.space.candidate(asked.params)

    def _made_for(self, trial: FrozenTrial, purpose: str) -> BaseSampler:
        return self.make(self.derived_seed(trial, purpose))
