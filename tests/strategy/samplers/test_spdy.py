import dataclasses
import functools
import itertools

import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.damage import Damage
from autoprune.strategy.registry import SAMPLERS, wanted_damage
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
        return functools.partial(SAMPLERS["spdy"], startup_trials=4)


def test_it_reads_the_damage_of_structured_obs():
    assert wanted_damage("spdy") == "obs"


def test_coefficients_weigh_the_damage():
    problem = made_up_problem(2, 16, multiple=4, droppable=False)
    space = problem.space
    curves = tuple(np.linspace(top, 0.0, 17) ** 2 for top in (1.0, 2.0, 1.5))
    problem = dataclasses.replace(problem, damage=Damage(curves, np.ones(2)))
    sampler = SAMPLERS["spdy"](problem, seed=0)
    widths = np.array(list(itertools.product(*(dim.widths for dim in space.dimensions))))
    keep = np.ones((len(widths), 2), bool)
    limit = 0.5 * problem.dense_ms
    fits = problem.predict(widths, keep) <= limit
    rng, solutions = np.random.default_rng(0), set()
    for _ in range(12):
        weights = rng.random(5)
        found = sampler.solved(weights, limit)
        costs = sum(weights[g] * curves[g][widths[:, g]] for g in range(3))
        mine = sum(weights[g] * curves[g][w] for g, w in enumerate(space.widths([found])[0]))
        assert problem.latency_ms([found])[0] <= limit
        assert mine <= 1.05 * costs[fits].min() + 1e-12
        solutions.add(found)
    assert len(solutions) > 1


def test_the_best_is_resampled_in_fewer_places_the_longer_nothing_was_better():
    problem = made_up_problem(10, 16, budget=0.5)
    sampler = SAMPLERS["spdy"](problem, seed=0, startup_trials=3, resampled=0.2, patience=2)
    with quiet_optuna():
        study = new_study(sampler)
        # The second is the best for ever.
        run_trials(study, problem, 10, loss=lambda space, c: abs(len(study.trials) - 2.0) + 1.0)
    vectors = [np.array(trial.system_attrs["spdy:coefficients"]) for trial in study.trials]
    assert (vectors[0] == 0.5).all()
    assert all(((v >= 0) & (v <= 1)).all() for v in vectors)
    changed = [int((vector != vectors[1]).sum()) for vector in vectors[3:]]
    # A fifth of 21 places; trials since the best: 1, 2, 3, ...
    assert changed == [4, 3, 3, 2, 2, 1, 1]


def test_numbers_must_make_sense():
    with pytest.raises(SettingsError, match=r"got 20, 100, 8 and 0\.0"):
        SAMPLERS["spdy"](made_up_problem(), seed=0, resampled=0.0)
