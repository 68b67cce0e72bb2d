import sys

import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.residual import complete_trials, scalars
from autoprune.strategy.samplers.cmaes import DirectionEvolution
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
        return SAMPLERS["cmaes"]


def test_it_learns_which_group_hurts(share_of_harmful_group):
    # Over 11 seeds the mean was 0.31, its standard deviation 0.05.
    assert share_of_harmful_group("cmaes") < 0.6


def test_it_learns_which_block_may_go():
    problem = made_up_problem(6, 32, budget=0.6)

    def loss(space, candidate):
        return 1.0 + 5.0 * sum(candidate.dropped[:5]) + sum(candidate.ratios)

    with quiet_optuna():
        study = new_study(SAMPLERS["cmaes"](problem, seed=0))
        proposed = run_trials(study, problem, 90, loss=loss)
    late = np.array([candidate.dropped for candidate in proposed[60:]]).mean(axis=0)
    assert late[5] > 0.7
    assert late[:5].max() < 0.4


def test_without_a_budget_latencies_are_spread():
    problem = made_up_problem(6, 64, multiple=1)
    with quiet_optuna():
        proposed = run_trials(new_study(SAMPLERS["cmaes"](problem, seed=0)), problem, 24)
    floor, top = np.log(problem.fastest[1]), np.log(problem.dense_ms)
    places = (np.log(problem.latency_ms(proposed)) - floor) / (top - floor)
    # Any 24 successive points of the sequence leave no gap above 0.09; steps are coarse.
    assert np.diff(np.sort(np.append(places, [0.0, 1.0]))).max() < 0.15


@pytest.mark.parametrize("droppable", [False, True])
def test_the_distribution_is_told_generations_in_the_order_of_numbers(droppable):
    """The state equals that of a plain loop over the package's own ask and tell."""
    import cmaes

    problem = made_up_problem(4, 32, budget=0.6, droppable=droppable)
    sampler = DirectionEvolution(problem, seed=5, population_size=6)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 25, batch=3, fails=lambda n: n in (2, 9))
    # What removes nothing, or blocks alone, has no direction.
    trials = [
        t for t in complete_trials(problem, study) if any(problem.space.candidate(t.params).ratios)
    ]
    assert len(trials) >= 12
    mean, bounds = np.full(5, 0.5), np.tile([0.0, 1.0], (5, 1))
    options = {"mean": mean, "sigma": 1 / 6, "bounds": bounds, "population_size": 6, "seed": 5}
    if droppable:
        state = cmaes.CatCMA(
            cat_num=np.full(4, 2), cat_param=np.tile([0.75, 0.25], (4, 1)), **options
        )
    else:
        state = cmaes.CMA(**options)
    for start in range(0, len(trials) - 5, 6):
        solutions = []
        for trial in trials[start : start + 6]:
            candidate = problem.space.candidate(trial.params)
            vector, gone = state.mean.copy(), np.array(candidate.dropped)
            ratios = np.array(candidate.ratios) / (1 - 2 / 32)
            alive = [0, *(block + 1 for block in range(4) if not gone[block])]
            length = np.sqrt((state.mean[alive] ** 2).sum() / (ratios[alive] ** 2).sum())
            vector[alive] = np.minimum(ratios[alive] * length, 1.0)
            covariance = state._sigma**2 * (state._C + state._C.T) / 2
            away = vector - state.mean
            distance = np.sqrt(away @ np.linalg.solve(covariance, away))
            shrink = min(1.0, (np.sqrt(5) + 10 / 7) / max(distance, 1e-9))
            vector = state.mean + away * shrink
            value = np.log(trial.values[0])
            if droppable:
                solutions.append(((vector, np.stack([~gone, gone], axis=1)), value))
            else:
                solutions.append((vector, value))
        state.tell(solutions)
        state._mean = np.clip(state._mean, 0.0, 1.0)
    evolved = sampler._evolved(trials)
    assert evolved.generation == len(trials) // 6
    assert evolved.mean == pytest.approx(state.mean, rel=1e-6)
    np.testing.assert_allclose(evolved._C, state._C, rtol=1e-5, atol=1e-8)
    assert evolved._sigma == pytest.approx(state._sigma, rel=1e-6)
    if droppable:
        assert evolved._q == pytest.approx(state._q, rel=1e-6)


def test_later_trials_change_no_generation_of_the_past():
    problem = made_up_problem(4, 32)
    sampler = DirectionEvolution(problem, seed=0, population_size=5)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 14)
    trials = complete_trials(problem, study)
    assert scalars(problem, trials)[:5].tolist() != scalars(problem, trials[:5]).tolist()
    assert sampler._evolved(trials).mean.tolist() == sampler._evolved(trials[:10]).mean.tolist()


def test_population_size_is_the_tutorials():
    # Seven groups and six blocks: 4 + floor(3 log 13).
    assert DirectionEvolution(made_up_problem(6), seed=0).population_size == 11
    with pytest.raises(SettingsError, match=r"at least 4 and sigma above 0, got 3 and 0\.1"):
        SAMPLERS["cmaes"](made_up_problem(), seed=0, population_size=3, sigma=0.1)


def test_nothing_is_stored_in_the_study():
    problem = made_up_problem(2, 16)
    with quiet_optuna():
        study = new_study(SAMPLERS["cmaes"](problem, seed=0, population_size=4))
        run_trials(study, problem, 10)
    assert not any(trial.system_attrs for trial in study.trials)


def test_a_missing_package_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(SettingsError, match=r"pip install 'autoprune\[samplers\]'"):
        SAMPLERS["cmaes"](made_up_problem(), seed=0)
