import dataclasses
import sys
import types

import numpy as np
import pytest
from optuna.samplers import BaseSampler, RandomSampler

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.strategy.goals import Cost
from autoprune.strategy.registry import build_sampler, check_sampler, wanted_damage
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)

PROBLEM = made_up_problem(4, 32, budget=0.5)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def propose(spec, trials=6, **options):
    sampler = build_sampler(spec, PROBLEM, seed=0, **options)
    return run_trials(new_study(sampler), PROBLEM, trials)


class TestQuasiRandom(SamplerConformance):
    order_matters = True  # the next point of the sequence goes to whichever trial asks

    @pytest.fixture
    def factory(self):
        return lambda problem, *, seed: build_sampler(
            "optuna.samplers:QMCSampler", problem, seed=seed
        )


@pytest.mark.parametrize(
    "spec", ["optuna.samplers:TPESampler", "optuna.samplers:GPSampler(n_startup_trials=3)"]
)
def test_optunas_samplers_by_path(spec):
    proposed = propose(spec)
    assert (PROBLEM.latency_ms(proposed) <= PROBLEM.budget_ms).all()
    assert len(set(proposed)) == 6
    assert proposed == propose(spec)


def test_quasi_random_points_are_one_sequence():
    free = made_up_problem(1, 512, multiple=1, droppable=False)
    sampler = build_sampler("optuna.samplers:QMCSampler", free, seed=0, scramble=True)
    proposed = run_trials(new_study(sampler), free, 33)
    first = np.array([candidate.ratios[0] for candidate in proposed[1:]])
    # 32 points of a scrambled Sobol' sequence: one in each 32nd; independent ones never would.
    assert len(set(np.floor(first * 512 / 511 * 32).astype(int))) >= 30


def test_options_and_arguments_reach_the_sampler():
    sampler = build_sampler(
        "optuna.samplers:NSGAIISampler(crossover_prob=0.25)", PROBLEM, seed=0, population_size=7
    )
    made = sampler.make(1)
    assert made.population_size == 7
    assert made._child_generation_strategy._crossover_prob == 0.25
    with pytest.raises(SettingsError, match="no option 'size'"):
        check_sampler("optuna.samplers:NSGAIISampler", {"size": 7})
    with pytest.raises(SettingsError, match="population_size should be int, got 'many'"):
        check_sampler("optuna.samplers:NSGAIISampler", {"population_size": "many"})
    with pytest.raises(SettingsError, match="NSGAIISampler failed: ValueError"):
        build_sampler("optuna.samplers:NSGAIISampler", PROBLEM, seed=0, population_size=1)


def test_one_objective_is_refused_with_the_way_out():
    with pytest.raises(SettingsError, match="objectives are loss and latency") as caught:
        build_sampler("optuna.samplers:CmaEsSampler", PROBLEM, seed=0)
    assert "'cmaes'" in str(caught.value)


def test_spaces_that_it_cannot_search_are_refused_before_any_trial():
    with pytest.raises(SettingsError, match="cannot propose for this search"):
        build_sampler("optuna.samplers:BruteForceSampler", PROBLEM, seed=0)
    with pytest.raises(SettingsError, match="GridSampler failed: TypeError"):
        build_sampler("optuna.samplers:GridSampler", PROBLEM, seed=0)


OWN = """
from optuna.samplers import RandomSampler
from autoprune.strategy.registry import wants_damage
from autoprune.strategy.rays import random_candidate
from autoprune.strategy.sampler import CandidateSampler

class Mine(CandidateSampler):
    def propose(self, study, trial, rng):
        return self.problem.space.smallest()

@wants_damage("obs")
def mine(problem, *, seed, first: int = 1):
    sampler = Mine(problem, seed=seed)
    sampler.first = first
    return sampler

class Counting(RandomSampler):
    def __init__(self, seed=None):
        super().__init__(seed)
        self.calls = 0
    def sample_independent(self, *args):
        self.calls += 1
        return super().sample_independent(*args)

def nothing(problem, *, seed):
    return 3

def number():
    return 3

value = 4
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def test_a_factory_of_a_file_is_used_as_it_is(own):
    sampler = build_sampler(f"{own}:mine", PROBLEM, seed=3, first=5)
    assert (sampler.seed, sampler.first) == (3, 5)
    assert build_sampler(f"{own}:mine(first=4)", PROBLEM, seed=3).first == 4
    assert wanted_damage(f"{own}:mine") == "obs"
    assert wanted_damage(f"{own}:Counting") is None
    with pytest.raises(SettingsError, match="first should be int, got 'x'"):
        check_sampler(f"{own}:mine", {"first": "x"})


def test_one_object_serves_a_run_where_it_may_keep_what_it_learns(own):
    sampler = build_sampler(f"{own}:Counting", PROBLEM, seed=0)
    proposed = run_trials(new_study(sampler), PROBLEM, 5)
    assert sampler.make(0) is sampler.make(1)
    assert sampler.make(0).calls == 5 * len(PROBLEM.space.distributions())
    assert len(set(proposed)) == 5
    assert (PROBLEM.latency_ms(proposed) <= PROBLEM.budget_ms).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "expected a sampler of Optuna, got a int"),
        ("number", "returned a int; expected a sampler of Optuna, or give it"),
        ("value", "is no class or function, but 4"),
        ("absent", "has nothing called 'absent'"),
        ("number(", "is no sampler: write package.module:Class"),
    ],
)
def test_what_is_no_sampler_is_refused(own, name, message):
    with pytest.raises(SettingsError, match=message.replace("(", r"\(")):
        build_sampler(f"{own}:{name}", PROBLEM, seed=0)


def test_what_does_not_exist_is_refused():
    with pytest.raises(SettingsError, match="nothing called 'QMCSample'; did you mean 'QMCSampler"):
        check_sampler("optuna.samplers:QMCSample", {})
    with pytest.raises(SettingsError, match="importing 'no_such_package' failed"):
        check_sampler("no_such_package:Sampler", {})
    with pytest.raises(UnknownNameError, match="did you mean 'tpe'"):
        check_sampler("tpee", {})


def hub(monkeypatch, **offered):
    package = types.ModuleType("package")
    vars(package).update(offered)
    module = types.ModuleType("optunahub")
    asked = []

    def load_module(name):
        asked.append(name)
        if name != "samplers/annealing":
            raise LookupError(f"no {name}")
        return package

    module.load_module = load_module
    monkeypatch.setitem(sys.modules, "optunahub", module)
    return asked


class Annealing(RandomSampler):
    pass


class Other(RandomSampler):
    pass


def test_samplers_of_optunahub_by_name(monkeypatch):
    asked = hub(monkeypatch, Annealing=Annealing, BaseSampler=BaseSampler)
    sampler = build_sampler("optunahub:annealing", PROBLEM, seed=0)
    assert asked == ["samplers/annealing"]
    assert isinstance(sampler.make(0), Annealing)
    with pytest.raises(SettingsError, match="OptunaHub has no sampler 'absent' for us: no sampler"):
        check_sampler("optunahub:absent", {})


def test_packages_of_optunahub_with_several_samplers(monkeypatch):
    hub(monkeypatch, Annealing=Annealing, Other=Other)
    with pytest.raises(SettingsError, match=r"optunahub:annealing\.Annealing, optunahub:annealing"):
        check_sampler("optunahub:annealing", {})
    sampler = build_sampler("optunahub:annealing.Other", PROBLEM, seed=0)
    assert isinstance(sampler.make(0), Other)


def test_a_missing_optunahub_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(SettingsError, match="pip install optunahub"):
        check_sampler("optunahub:annealing", {})


def test_samplers_of_optuna_take_as_many_objectives_as_there_are():
    cost = Cost("params", lambda widths, keep: 1.0 + widths.sum(axis=1))
    several = dataclasses.replace(PROBLEM, costs=(Cost("latency", PROBLEM.latency), cost))
    sampler = build_sampler("optuna.samplers:NSGAIISampler", several, seed=0)
    assert sampler.joint
    with pytest.raises(SettingsError, match="loss and latency, params"):
        build_sampler("optuna.samplers:CmaEsSampler", several, seed=0)
