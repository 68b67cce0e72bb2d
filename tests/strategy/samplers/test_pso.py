import functools

import numpy as np
import pytest
from optuna.trial import TrialState

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
        return functools.partial(SAMPLERS["pso"], particles=3)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def test_velocity_is_inertia_and_two_pulls():
    sampler = SAMPLERS["pso"](made_up_problem(), seed=0, inertia=0.5, pull=2.0)
    points = np.array([[0.5, 0.4], [0.3, 0.4], [0.1, 0.9], [1.0, 0.2]])
    velocity = sampler._velocity(points, np.random.default_rng(3))
    own, best = np.random.default_rng(3).random((2, 2))
    expected = [
        0.5 * (0.5 - 0.3) + 2.0 * own[0] * (0.1 - 0.5) + 2.0 * best[0] * (1.0 - 0.5),
        0.5 * (0.4 - 0.4) + 2.0 * own[1] * (0.9 - 0.4) + 2.0 * best[1] * (0.2 - 0.4),
    ]
    assert velocity == pytest.approx(expected)


def test_particles_take_turns_and_fly_no_faster_than_they_may():
    problem = made_up_problem(6, 128, budget=0.5, multiple=1, droppable=False)
    study = new_study(SAMPLERS["pso"](problem, seed=0, particles=4, max_velocity=0.05))
    proposed = run_trials(study, problem, 16, fails=lambda number: number == 5)
    assert [t.system_attrs["pso:particle"] for t in study.trials] == [0, 1, 2, 3] * 4
    ratios = np.array([candidate.ratios for candidate in proposed])
    steps = np.abs(ratios[4:] - ratios[:-4])
    others = np.abs(ratios[4:] - ratios[1:-3])
    # Scaling back to the budget and filling move a little more.
    assert np.median(steps) < 0.06
    assert np.median(others) > 2 * np.median(steps)


def test_a_swarm_without_pull_and_velocity_stays():
    problem = made_up_problem(4, 64, budget=0.5, multiple=1, droppable=False)
    options = {"particles": 2, "inertia": 0.0, "pull": 0.0}
    sampler = SAMPLERS["pso"](problem, seed=0, **options)
    study = new_study(sampler)
    first = run_trials(study, problem, 2)
    trial = study.ask()
    frozen = study.get_trials()[-1]
    again = sampler.propose(study, frozen, np.random.default_rng(0))
    assert np.abs(np.array(again.ratios) - first[0].ratios).max() <= 2 / 64
    study.tell(trial, state=TrialState.FAIL)


def test_it_gathers_where_the_loss_is_low():
    problem = made_up_problem(6, 64, budget=0.5, multiple=1, droppable=False)

    def loss(space, candidate):
        return 1.0 + 20.0 * candidate.ratios[3] + sum(candidate.ratios)

    study = new_study(SAMPLERS["pso"](problem, seed=0, particles=8))
    ratios = np.array([c.ratios for c in run_trials(study, problem, 56, loss=loss)])
    early, late = ratios[:8, 3].mean(), ratios[40:, 3].mean()
    assert late < 0.8 * early


def test_there_has_to_be_a_particle():
    with pytest.raises(SettingsError, match="particles >= 1, got 0"):
        SAMPLERS["pso"](made_up_problem(), seed=0, particles=0)
