import dataclasses

import pytest
from optuna.samplers import BaseSampler

from autoprune.errors import BudgetError, SettingsError, UnknownNameError
from autoprune.strategy.registry import SAMPLERS, build_sampler
from autoprune.testing.samplers import made_up_problem


def test_every_file_is_registered():
    assert {"nsga2", "random", "tpe", "uniform"} <= set(SAMPLERS.names())


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_is_built_without_options(name):
    assert isinstance(build_sampler(name, made_up_problem(), seed=0), BaseSampler)


def test_options_reach_the_sampler():
    sampler = build_sampler("nsga2", made_up_problem(), seed=0, population_size=7)
    assert sampler.startup_trials == 7


def test_unknown_sampler():
    with pytest.raises(UnknownNameError, match="no sampler named 'nsga22'; did you mean 'nsga2'"):
        build_sampler("nsga22", made_up_problem(), seed=0)


def test_unknown_option():
    with pytest.raises(SettingsError, match="no option 'population'; did you mean 'population_"):
        build_sampler("nsga2", made_up_problem(), seed=0, population=7)


def test_negative_seed():
    with pytest.raises(SettingsError, match="at least 0, got -1"):
        build_sampler("random", made_up_problem(), seed=-1)


def test_impossible_budget_is_found_before_any_trial():
    problem = dataclasses.replace(made_up_problem(), budget_ms=1e-6)
    with pytest.raises(BudgetError, match="no candidate of the search space"):
        build_sampler("random", problem, seed=0)
