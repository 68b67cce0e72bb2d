import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.registry import SAMPLERS
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["nsga3"]


def test_it_learns_which_group_hurts(share_of_harmful_group):
    # Over 11 seeds the mean was 0.47, its standard deviation 0.20, so the mean of three other
    # seeds would fail in less than one case in 300.
    assert share_of_harmful_group("nsga3", population_size=12) < 0.8


def test_options_are_passed_on():
    problem = made_up_problem()
    sampler = SAMPLERS["nsga3"]
    assert sampler(problem, seed=0, population_size=5).startup_trials == 5
    assert sampler(problem, seed=0, population_size=5).make(1).population_size == 5
    wrong = {"swapping_prob": 2.0, "mutation_prob": 2.0, "crossover_prob": 2.0}
    for name, value in (wrong | {"population_size": 1, "dividing_parameter": 0}).items():
        with pytest.raises(SettingsError, match=name):
            sampler(problem, seed=0, **{name: value})
