"""The base of autoprune's own samplers: whole candidates, inside the budget, never twice."""

from __future__ import annotations

import abc
import weakref
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.budget import project
from autoprune.strategy.exhaustion import every_candidate
from autoprune.strategy.moves import neighbour
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate

#: Tries to vary a repeated proposal before it is accepted, as it must be in an exhausted space.
_TRIES = 32


class CandidateSampler(BaseSampler, abc.ABC):
    """Proposes a candidate per trial; everything else is the same for every strategy.

    A subclass says which candidate it would like (:meth:`propose`). This class snaps it, moves it
    inside the budget, replaces it by a neighbour if the study already has it (finished, failed or
    pending) and hands Optuna the parameters, so that the study's parameters are what is evaluated.

    It keeps no state but a word for who watches: all randomness comes from the seed and the trial's
    number, everything learned from the study. A resumed run therefore continues as if it had never
    stopped, and threads may share the sampler.

    Attributes:
        doing: How it came to its last proposal, in a few words; empty where it does not say.
    """

    doing: str = ""

    #: Whether proposals may be changed beyond what the budget demands: widened where that costs
    #: no latency, and varied where they repeat.
    adjusts: ClassVar[bool] = True

    @property
    def joint(self) -> bool:
        """Whether it reads all objectives of a study; if not, it knows the loss and one cost."""
        return False

    def __init__(self, problem: Problem, *, seed: int) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
        """
        self.problem = problem
        self.seed = seed

    @abc.abstractmethod
    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the candidate to try next; it may be off the grid and over the budget.

        Args:
            study: The study, with finished and pending trials.
            trial: The new trial, without parameters yet.
            rng: The only source of randomness, seeded for this trial.
        """

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters of the search space: they are proposed together."""
        return self.problem.space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the proposed candidate.

        Args:
            study: The study.
            trial: The new trial.
            search_space: Parameters to return. If some of the space's are missing because the
                user fixed them, the budget cannot be kept for the values that were fixed.
        """
        space = self.problem.space
        rng = np.random.default_rng([self.seed, trial.number])
        candidate = self.propose(study, trial, rng)
        candidate = project(self.problem, candidate, fill=self.adjusts)
        if self.adjusts:
            candidate = self._fresh(candidate, seen_params(self.problem, study, trial), rng)
        params: dict[str, Any] = dict(space.params(candidate))
        for name in search_space.keys() - params.keys():
            params[name] = self.sample_independent(study, trial, name, search_space[name])
        return {name: params[name] for name in search_space}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a random value of a parameter that is not the search space's."""
        sampler = RandomSampler(self.derived_seed(trial, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def derived_seed(self, trial: FrozenTrial, purpose: str) -> int:
        """Return a seed below 2**32 for one purpose in one trial."""
        # zlib.crc32 and not hash(), which differs from process to process.
        entropy = [self.seed, trial.number, zlib.crc32(purpose.encode())]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _fresh(
        self, candidate: Candidate, seen: set[tuple[float | bool, ...]], rng: np.random.Generator
    ) -> Candidate:
        """Return the candidate, or a neighbour the study does not have yet."""
        space = self.problem.space
        proposal = candidate
        for attempt in range(_TRIES):
            values = tuple(space.params(proposal).values())
            if not values or values not in seen:
                return proposal
            moved = neighbour(space, candidate, rng, moves=1 + attempt // 8)
            proposal = project(self.problem, moved)
        left = [c for c in self._every or () if tuple(space.params(c).values()) not in seen]
        return left[rng.integers(len(left))] if left else candidate

    @cached_property
    def _every(self) -> tuple[Candidate, ...] | None:
        """All candidates, where they are few."""
        return every_candidate(self.problem)


def seen_params(
    problem: Problem, study: Study, trial: FrozenTrial
) -> set[tuple[float | bool, ...]]:
    """Return the parameter values of all other trials of the study, in the space's order.

    Of a study that grows only what is new is read; the set is not the caller's to change.

    Args:
        problem: Supplies the parameters' names.
        study: The study; finished, failed and pending trials count alike.
        trial: The trial to leave out.
    """
    names = tuple(problem.space.distributions())
    memory = _MEMORIES.setdefault(study, {}).setdefault(names, _Seen(names))
    return memory.without(study.get_trials(deepcopy=False), trial.number)


class _Seen:
    """Parameter values of a study's trials, read once each.

    What is kept follows from the study alone, so it may be lost at any time.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._values: set[tuple[float | bool, ...]] = set()
        self._numbers: set[int] = set()
        self._read = 0
        self._unread: list[int] = []

    def without(self, trials: Sequence[FrozenTrial], number: int) -> set[tuple[float | bool, ...]]:
        """Return the values of all trials but one.

        Args:
            trials: All trials, in an order in which later calls only add some.
            number: Number of the trial to leave out.
        """
        names = self._names
        places = [*self._unread, *range(self._read, len(trials))]
        self._read, self._unread = len(trials), []
        for place in places:
            trial = trials[place]
            if trial.number != number and all(name in trial.params for name in names):
                self._values.add(tuple(trial.params[name] for name in names))
                self._numbers.add(trial.number)
            else:
                self._unread.append(place)
        if number not in self._numbers:
            return self._values
        return {
            tuple(trial.params[name] for name in names)
            for trial in trials
            if trial.number != number and all(name in trial.params for name in names)
        }


#: By study and names of parameters; forgotten with the study.
_MEMORIES: weakref.WeakKeyDictionary[Study, dict[tuple[str, ...], _Seen]] = (
    weakref.WeakKeyDictionary()
)
