import numpy as np
import optuna
import pytest

from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.residual import scalar_study
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_loss,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["gp"]


def best(name, problem, seed, **options):
    with quiet_optuna():
        study = new_study(SAMPLERS[name](problem, seed=seed, **options))
        proposed = run_trials(study, problem, 26)
    return min(made_up_loss(problem.space, candidate) for candidate in proposed)


def test_it_beats_random_candidates_under_a_budget():
    problem = made_up_problem(4, 32, budget=0.6)
    found = [(best("gp", problem, seed), best("random", problem, seed)) for seed in range(3)]
    # Over ten seeds 0.51 with a standard deviation of 0.26, and 1.21 with 0.45: the means of three
    # other seeds would be in the wrong order in about one case in 100.
    assert np.mean([pair[0] for pair in found]) < np.mean([pair[1] for pair in found])


def test_it_proposes_what_optuna_does_for_one_objective():
    problem = made_up_problem(2, 16, droppable=False, multiple=1)
    sampler = SAMPLERS["gp"](problem, seed=3)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 12)
        study.ask(problem.space.distributions())
        study.ask()
        copy, trial = scalar_study(problem, study), study.trials[-1]
        seed = int(np.random.default_rng(0).integers(2**31))
        copy.sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=10)
        expected = copy.ask(problem.space.distributions()).params
        proposed = sampler.propose(study, trial, np.random.default_rng(0))
    assert proposed == problem.space.candidate(expected)


def test_hypervolume_shows_the_process_both_objectives():
    problem = made_up_problem(2, 16)
    assert SAMPLERS["gp"](problem, seed=0).scalar
    assert not SAMPLERS["gp"](problem, seed=0, hypervolume=True).scalar
    with quiet_optuna():
        study = new_study(SAMPLERS["gp"](problem, seed=0, startup_trials=4, hypervolume=True))
        proposed = run_trials(study, problem, 6)
    assert len(set(proposed)) == 6
    assert SAMPLERS["gp"](problem, seed=0, startup_trials=4).startup_trials == 4
