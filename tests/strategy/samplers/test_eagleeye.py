import dataclasses

import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.registry import SAMPLERS
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["eagleeye"]


def proposals(problem, count, seed=0, **options):
    with quiet_optuna():
        study = new_study(SAMPLERS["eagleeye"](problem, seed=seed, **options))
        return run_trials(study, problem, count)


def test_ratios_are_uniform_draws_scaled_to_the_budget():
    problem = made_up_problem(6, 128, budget=0.5, multiple=1)
    for number, candidate in enumerate(proposals(problem, 4, seed=7)):
        drawn = np.random.default_rng([7, number]).uniform(0.0, 0.7, 7)
        ratios = np.array(candidate.ratios)
        # Multiples of the draw, but for steps of 1/128 and what filling gave back.
        inside = ratios < 0.99
        factor = np.median(ratios[inside] / drawn[inside])
        assert ratios[inside] == pytest.approx(factor * drawn[inside], abs=0.05)
        ms = problem.latency_ms([candidate])[0]
        assert 0.97 * problem.budget_ms < ms <= problem.budget_ms
        assert not any(candidate.dropped)


def test_blocks_go_only_where_the_budget_needs_it():
    problem = made_up_problem(6, 32)
    least = problem.latency_ms([problem.space.smallest()])[0]
    tight = dataclasses.replace(problem, budget_ms=0.9 * least)
    assert all(any(candidate.dropped) for candidate in proposals(tight, 3))


def test_a_narrow_range_of_rates_is_nearly_uniform():
    problem = made_up_problem(6, 128, budget=0.5, multiple=1)
    spreads = [
        np.mean([np.std(c.ratios) for c in proposals(problem, 6, min_rate=low, max_rate=0.7)])
        for low in (0.0, 0.6)
    ]
    # Uniform draws of [0, 0.7] vary by 0.2 around 0.35, those of [0.6, 0.7] by 0.03 around 0.65.
    assert spreads[1] < 0.5 * spreads[0]


def test_without_a_budget_latencies_spread():
    problem = made_up_problem(6, 64, multiple=1)
    ms = problem.latency_ms(proposals(problem, 12))
    shares = np.log(ms / problem.fastest[1]) / np.log(problem.dense_ms / problem.fastest[1])
    assert np.histogram(shares, bins=4, range=(0, 1))[0].min() >= 2


def test_rates_must_fit():
    with pytest.raises(SettingsError, match=r"got 0\.5 and 0\.4"):
        SAMPLERS["eagleeye"](made_up_problem(), seed=0, min_rate=0.5, max_rate=0.4)
