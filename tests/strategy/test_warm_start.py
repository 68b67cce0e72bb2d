import dataclasses

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.strategy.damage import Damage
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.warm_start import WarmStart, anchors
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


def warm(name, problem, *, seed, count=3, **options):
    return WarmStart(problem, build_sampler(name, problem, seed=seed, **options), count=count)


class TestWarmNsga2(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return lambda problem, *, seed: warm("nsga2", problem, seed=seed)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_optuna():
        yield


def damage_of(problem, candidates):
    space = problem.space
    prior = problem.damage or Damage.quadratic(space)
    return prior.at(space, space.widths(candidates), space.keep(candidates))


@pytest.mark.parametrize("budget", [None, 0.6])
def test_anchors_cover_the_latencies_at_little_damage(budget):
    problem = made_up_problem(4, 32, budget=budget)
    rng = np.random.default_rng(0)
    curves = tuple(np.cumsum(rng.uniform(size=33))[::-1] - 0.0 for _ in range(5))
    curves = tuple(curve - curve[-1] for curve in curves)
    problem = dataclasses.replace(problem, damage=Damage(curves, rng.uniform(5, 10, 4)))
    found = anchors(problem, 4)
    assert 2 <= len(found) <= 4
    ms = problem.latency_ms(found)
    assert (np.diff(ms) < 0).all()
    top = problem.dense_ms if budget is None else problem.budget_ms
    limits = np.geomspace(problem.fastest[1], top, 5)[::-1]
    limits = limits[1:] if budget is None else limits[:-1]
    if len(found) == 4:
        assert (ms <= limits * (1 + 1e-9)).all()
    # No random candidate is as fast at less damage.
    from autoprune.strategy.rays import random_candidate

    others = [random_candidate(problem, rng) for _ in range(100)]
    for candidate, latency_ms in zip(found, ms, strict=True):
        rivals = [c for c in others if problem.latency_ms([c])[0] <= latency_ms]
        if rivals:
            assert damage_of(problem, [candidate])[0] <= damage_of(problem, rivals).min()


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random", "uniform", "cmaes"])
def test_anchors_come_first_whatever_the_sampler(name):
    problem = made_up_problem(4, 32, budget=0.6)
    study = new_study(warm(name, problem, seed=0))
    study.add_trial(
        optuna.create_trial(
            params=problem.space.params(problem.space.dense()),
            distributions=problem.space.distributions(),
            values=[0.1, problem.dense_ms],
            user_attrs={"dense": True},
        )
    )
    expected = anchors(problem, 3)
    proposed = run_trials(study, problem, 8, batch=2)
    assert tuple(proposed[: len(expected)]) == expected
    assert not set(proposed[len(expected) :]) & set(expected)


def test_a_resumed_run_goes_on_with_the_next_anchor(tmp_path):
    problem = made_up_problem(4, 32, budget=0.6)

    def study():
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(tmp_path / "study.journal"))),
            study_name="run",
            directions=["minimize", "minimize"],
            sampler=warm("nsga2", problem, seed=0, population_size=4),
            load_if_exists=True,
        )

    whole = run_trials(new_study(warm("nsga2", problem, seed=0, population_size=4)), problem, 12)
    assert run_trials(study(), problem, 2) + run_trials(study(), problem, 10) == whole


def test_genetic_samplers_count_anchors_as_members_of_their_generation():
    problem = made_up_problem(4, 32, budget=0.6)
    study = new_study(warm("nsga2", problem, seed=0, population_size=4))
    run_trials(study, problem, 6)
    plain = new_study(build_sampler("nsga2", problem, seed=0, population_size=4))
    run_trials(plain, problem, 6)
    noted = [[sorted(trial.system_attrs) for trial in s.trials] for s in (study, plain)]
    assert noted[0] == noted[1]
    assert any(noted[0])
