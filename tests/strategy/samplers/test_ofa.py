import functools

import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.levels import plateau_levels
from autoprune.strategy.population import evaluated
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.targets import random_at
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)

#: A predictor that costs nothing.
SMALL = {"hidden_units": 16, "epochs": 4, "population_size": 8, "generations": 2}


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return functools.partial(SAMPLERS["ofa"], startup_trials=4, **SMALL)


def test_levels_are_one_hot_and_what_is_gone_is_zero():
    problem = made_up_problem(3, 16, multiple=4)
    grid = plateau_levels(problem)
    ratios = np.array([[0.0, 0.25, 0.0, 0.75]])
    dropped = np.array([[False, True, False]])
    read = SAMPLERS["ofa"](problem, seed=0).features(ratios, dropped)[0]
    levels = grid.widths.shape[1]
    expected = np.zeros((4, levels))
    for group in (0, 1, 3):
        width = round(16 * (1 - ratios[0, group]))
        expected[group, grid.widths[group].tolist().index(width)] = 1.0
    assert read.tolist() == [*expected.ravel(), 0.0, 1.0, 0.0]


def test_predictions_rank_candidates_and_evolution_finds_better_ones():
    problem = made_up_problem(3, 32, budget=0.5, multiple=2, droppable=False)
    sampler = SAMPLERS["ofa"](problem, seed=0, startup_trials=30, hidden_units=64, generations=5)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 30)
    population = evaluated(problem, study)
    model = sampler._predictor(population)
    predicted = model.predict(sampler.features(population.ratios, population.dropped))
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, population.loss)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7
    rng = np.random.default_rng(1)
    best = sampler._evolved(population, problem.budget_ms, rng)
    drawn = [random_at(problem, rng, problem.budget_ms) for _ in range(40)]
    rows = np.array([candidate.ratios for candidate in [best, *drawn]])
    scores = model.predict(sampler.features(rows, np.zeros((41, 3), bool)))
    assert scores[0] == scores.min()
    assert problem.latency_ms([best])[0] <= problem.budget_ms


def test_the_predictor_is_fitted_again_when_evaluations_have_grown_by_a_tenth():
    problem = made_up_problem(3, 32, budget=0.5)
    sampler = SAMPLERS["ofa"](problem, seed=0, startup_trials=20, **SMALL)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 20)
        models = []
        for _ in range(4):
            models.append(sampler._predictor(evaluated(problem, study)))
            run_trials(study, problem, 1)
    assert models[0] is models[1]
    assert models[2] is models[3]
    assert models[1] is not models[2]


def test_numbers_must_make_sense():
    with pytest.raises(SettingsError, match="got 20, 400, 60, 15 and 3"):
        SAMPLERS["ofa"](made_up_problem(), seed=0, population_size=3)
