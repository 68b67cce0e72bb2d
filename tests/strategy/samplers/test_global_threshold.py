import dataclasses

import numpy as np
import pytest

from autoprune.errors import UnknownNameError
from autoprune.strategy.budget import project
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.samplers.global_threshold import NORMALISE
from autoprune.strategy.space import Candidate
from autoprune.testing.samplers import (
    MadeUpLatency,
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["global_threshold"]


def scored(seed=0, **settings):
    problem = made_up_problem(4, 24, multiple=1, **settings)
    rng = np.random.default_rng(seed)
    scores = {
        dim.group: rng.gamma(2.0, size=dim.size) * 10.0 ** rng.uniform(-2, 2)
        for dim in problem.space.dimensions
    }
    return dataclasses.replace(problem, scores=scores)


def propose(problem, trials, **options):
    sampler = SAMPLERS["global_threshold"](problem, seed=0, **options)
    with quiet_optuna():
        return run_trials(new_study(sampler), problem, trials)


@pytest.mark.parametrize("normalise", sorted(NORMALISE))
@pytest.mark.parametrize("latency", [MadeUpLatency(), MadeUpLatency(padding=4, bumps=0.2)])
def test_first_threshold_that_meets_the_budget(normalise, latency):
    problem = scored(budget=0.6, latency=latency)
    space = problem.space
    normalised = {
        "mean": lambda s: s / np.mean(s),
        "max": lambda s: s / np.max(s),
        "sum": lambda s: s / np.sum(s),
        "norm": lambda s: s / np.sqrt(np.sum(s**2)),
        "standardise": lambda s: (s - np.min(s)) / (np.max(s) - np.min(s)),
        "none": lambda s: s,
    }[normalise]
    scores = [normalised(problem.scores[dim.group]) for dim in space.dimensions]
    for threshold in [*np.unique(np.concatenate(scores)), np.inf]:
        # Ratios, so that the space moves widths to what it allows.
        ratios = tuple(float((s < threshold).mean()) for s in scores)
        found = space.snap(Candidate(ratios, (False,) * len(space.blocks)))
        if problem.latency_ms([found])[0] <= problem.budget_ms:
            break
    assert propose(problem, 1, normalise=normalise) == [project(problem, found)]
    assert len(set(found.ratios)) > 2


def test_without_scores_every_group_loses_the_same_fraction():
    problem = made_up_problem(4, 64, multiple=1)
    for candidate in propose(problem, 4)[2:]:
        assert np.ptp(candidate.ratios) <= 2 / 64
        assert min(candidate.ratios) > 0.1


def test_trials_spread_over_latencies():
    problem = scored()
    shares = np.log(problem.latency_ms(propose(problem, 9)) / problem.dense_ms)
    depth = np.log(problem.fastest[1] / problem.dense_ms)
    assert np.abs(np.diff(sorted(shares / depth))).max() < 0.2


def test_unknown_normalisation():
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        SAMPLERS["global_threshold"](made_up_problem(), seed=0, normalise="means")
