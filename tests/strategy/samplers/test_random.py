import numpy as np
import pytest

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
        return SAMPLERS["random"]


def test_results_do_not_matter_but_the_seed_does():
    problem = made_up_problem(8, 64, budget=0.5)

    def run(seed, loss):
        with quiet_optuna():
            return run_trials(
                new_study(SAMPLERS["random"](problem, seed=seed)), problem, 8, loss=loss
            )

    assert run(0, lambda space, candidate: 1.0) == run(0, lambda space, candidate: hash(candidate))
    assert not set(run(0, lambda *_: 1.0)) & set(run(1, lambda *_: 1.0))


def test_every_trial_has_its_own_ray():
    problem = made_up_problem(8, 64, budget=0.5)
    with quiet_optuna():
        proposed = run_trials(new_study(SAMPLERS["random"](problem, seed=0)), problem, 20)
    span = problem.budget_ms - problem.fastest[1]
    # Twenty uniform draws lie within half of the range with a probability of about 1e-5.
    assert np.ptp(problem.latency_ms(proposed)) > 0.5 * span
