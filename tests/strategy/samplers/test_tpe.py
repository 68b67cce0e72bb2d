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
        return SAMPLERS["tpe"]


def test_it_learns_which_group_hurts(share_of_harmful_group):
    # Over 11 seeds the mean was 0.27, its standard deviation 0.16, so three other seeds would
    # fail in less than one case in 500.
    assert share_of_harmful_group("tpe") < 0.8


def test_options_are_passed_on():
    problem = made_up_problem()
    sampler = SAMPLERS["tpe"]
    assert sampler(problem, seed=0, startup_trials=3).startup_trials == 3
    made = sampler(problem, seed=0, multivariate=True, ei_candidates=5).make(1)
    with quiet_optuna():
        study = new_study(made)
    run_trials(study, problem, 2)
    # Only the joint model proposes all parameters at once.
    assert made.infer_relative_search_space(study, study.trials[-1])
    assert not sampler(problem, seed=0).make(1).infer_relative_search_space(study, study.trials[-1])
