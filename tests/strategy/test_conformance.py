"""The public suite has to catch samplers that break its promises."""

import numpy as np
import pytest
from optuna.samplers import RandomSampler

from autoprune.strategy.rays import random_candidate
from autoprune.strategy.sampler import CandidateSampler
from autoprune.testing.samplers import (
    PROBLEMS,
    SamplerConformance,
    made_up_problem,
    quiet_optuna,
)

SUITE = SamplerConformance()
ROOMY = made_up_problem(8, 64, budget=0.5, multiple=1)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def plain(problem, *, seed):
    """Optuna's sampler as it is: off the grid, over the budget, and it starts over on resume."""
    return RandomSampler(seed)


class Repeating(CandidateSampler):
    adjusts = False

    def propose(self, study, trial, rng):
        return self.problem.space.smallest()


class Unseeded(CandidateSampler):
    def propose(self, study, trial, rng):
        return random_candidate(self.problem, np.random.default_rng())


class GlobalState(CandidateSampler):
    def propose(self, study, trial, rng):
        return random_candidate(self.problem, np.random.default_rng(np.random.randint(2**31)))


def test_over_budget():
    with pytest.raises(AssertionError, match="over the budget"):
        SUITE.test_proposals_are_feasible(plain, PROBLEMS["tight"])


def test_off_the_grid():
    with pytest.raises(AssertionError, match="off the grid"):
        SUITE.test_proposals_are_feasible(plain, PROBLEMS["no budget"])


def test_starts_over():
    with pytest.raises(AssertionError):
        SUITE.test_resumed_run_continues(plain, ROOMY)


def test_repeats():
    with pytest.raises(AssertionError):
        SUITE.test_proposals_differ(Repeating, ROOMY)
    with pytest.raises(AssertionError):
        SUITE.test_all_trials_may_fail(Repeating, ROOMY)
    with pytest.raises(AssertionError):
        SUITE.test_exhausted_space(Repeating)


def test_not_deterministic():
    with pytest.raises(AssertionError):
        SUITE.test_same_seed_same_proposals(Unseeded, ROOMY)


def test_global_random_state():
    with pytest.raises(AssertionError):
        SUITE.test_global_random_state_is_left_alone(GlobalState, ROOMY)
