import dataclasses

import numpy as np
import optuna
import pytest

from autoprune.strategy.goals import LATENCY, Cost
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.rotation import Direction, DirectionStudy, Rotation, directions
from autoprune.testing.samplers import (
    MadeUpLatency,
    limited_problem,
    made_up_loss,
    quiet_optuna,
)


@pytest.fixture(autouse=True)
def quiet():
    with quiet_optuna():
        yield


def units(widths, keep):
    return 1.0 + (widths[:, 1:] * keep).sum(axis=1)


def problem_with(budget, *costs):
    problem = limited_problem(budget)
    known = {
        LATENCY: Cost(LATENCY, problem.latency),
        "params": Cost("params", units),
        "latency@other": Cost("latency@other", MadeUpLatency(padding=2)),
    }
    return dataclasses.replace(problem, costs=tuple(known[name] for name in costs))


def run(problem, sampler, trials):
    """Return the study after some more trials; the sampler may be new."""
    study = problem_study(problem, sampler)
    extend(problem, study, trials)
    return study


def problem_study(problem, sampler):
    return optuna.create_study(
        directions=["minimize"] * (1 + len(problem.objectives)), sampler=sampler
    )


def extend(problem, study, trials):
    for _ in range(trials):
        trial = study.ask(problem.space.distributions())
        candidate = problem.space.candidate(trial.params)
        costs = problem.cost_values([candidate])[0].tolist()
        study.tell(trial, [made_up_loss(problem.space, candidate), *costs])


@pytest.mark.parametrize(("costs", "count"), [(1, 1), (2, 5), (3, 7), (4, 15)])
def test_directions_differ_and_end_at_one(costs, count):
    found = directions(costs)
    assert len(set(found)) == len(found) == count
    assert {max(weights) for weights in found} == {1.0}
    assert found[0] == (1.0,) * costs


def test_within_a_direction_means_within_all_its_budgets():
    problem = problem_with(None, LATENCY, "params", "latency@other")
    rng = np.random.default_rng(0)
    ratios = rng.uniform(size=(200, 7)) * 0.9
    widths, keep = problem.space.realise(ratios, rng.uniform(size=(200, 6)) < 0.2)
    weights = (1.0, 0.5, 1.0)
    cost = Direction(problem, weights)(widths, keep)
    values = np.stack([c.measure(widths, keep) for c in problem.costs], axis=1)
    size = 0.4  # budgets in fixed proportion: half of the weight, twice the budget
    budgets = size * problem.dense_costs / np.array(weights)
    assert 0 < (cost <= size * problem.dense_ms).sum() < 200
    assert ((cost <= size * problem.dense_ms) == (values <= budgets).all(axis=1)).all()
    assert Direction(problem, weights).of(values).tolist() == pytest.approx(cost.tolist())


def test_a_budget_stays_one_for_the_latency_alone_and_is_a_limit_elsewhere():
    problem = problem_with(0.5, LATENCY, "params")
    alone = Direction(problem, (1.0, 0.0)).view
    assert alone.budget_ms == problem.budget_ms
    assert alone.limits == problem.limits
    both = Direction(problem, (1.0, 1.0)).view
    assert both.budget_ms is None
    assert both.goals.limits[LATENCY] == problem.budget_ms
    assert both.goals.costs == (LATENCY,)


def test_every_round_takes_every_direction_once():
    problem = problem_with(None, LATENCY, "params")
    rotation = build_sampler("random", problem, seed=3)
    turns = [rotation.turn(number) for number in range(50)]
    for start in range(0, 50, 5):
        assert sorted(turns[start : start + 5]) == [0, 1, 2, 3, 4]
    assert len({tuple(turns[start : start + 5]) for start in range(0, 50, 5)}) > 1


def test_a_sampler_sees_two_values_and_only_its_own_notes():
    problem = problem_with(None, LATENCY, "params")
    study = problem_study(problem, build_sampler("random", problem, seed=0))
    for number in range(4):
        trial = study.ask(problem.space.distributions())
        study._storage.set_trial_system_attr(trial._trial_id, "note", number)
        study.tell(trial, [0.1 * number, 2.0, 3.0 * number + 1.0])
    direction = Direction(problem, (0.0, 1.0))
    shown = DirectionStudy(study, direction, mine=lambda number: number == 2).trials
    for before, after in zip(study.trials, shown, strict=True):
        expected = before.values[2] / problem.dense_costs[1] * problem.dense_ms
        assert after.values == pytest.approx([before.values[0], expected])
        assert ("note" in after.system_attrs) == (after.number == 2)
        assert len(before.values) == 3


@pytest.mark.parametrize(
    ("name", "budget", "half"),
    [
        ("abc", None, 6),
        ("nsga2", 0.3, 6),
        ("netadapt", 0.3, 6),
        pytest.param("knapsack", 0.3, 2, marks=pytest.mark.slow),
    ],
)
def test_proposals_meet_all_limits_and_continue_when_resumed(name, budget, half):
    problem = problem_with(budget, "params", "latency@other")
    study = run(problem, build_sampler(name, problem, seed=1), 2 * half)
    again = run(problem, build_sampler(name, problem, seed=1), half)
    again.sampler = build_sampler(name, problem, seed=1)
    extend(problem, again, half)
    assert [t.params for t in again.trials] == [t.params for t in study.trials]
    candidates = [problem.space.candidate(trial.params) for trial in study.trials]
    assert len(set(candidates)) == len(candidates)
    widths, keep = problem.space.widths(candidates), problem.space.keep(candidates)
    for limit in problem.limits:
        assert (limit.cost.measure(widths, keep) <= limit.most).all()
    if budget is not None:
        assert (problem.latency(widths, keep) <= problem.budget_ms).all()


def test_directions_find_what_one_cost_alone_would_not():
    """Along the second cost alone, the least of it is lower than along the first alone."""
    problem = dataclasses.replace(problem_with(None, LATENCY, "params"), limits=())
    rotation = build_sampler("uniform", problem, seed=0)
    assert isinstance(rotation, Rotation)
    study = run(problem, rotation, 20)
    costs = np.array([trial.values[1:] for trial in study.trials]) / problem.dense_costs
    for column in costs.T:
        assert column.min() < 0.2 < 0.7 < column.max()


def test_samplers_of_many_objectives_are_not_turned():
    problem = problem_with(None, LATENCY, "params")
    for name in ("nsga2", "nsga3", "tpe"):
        assert not isinstance(build_sampler(name, problem, seed=0), Rotation)
    assert not isinstance(build_sampler("gp", problem, seed=0, hypervolume=True), Rotation)
    assert isinstance(build_sampler("gp", problem, seed=0), Rotation)


def test_a_warm_start_begins_where_all_costs_fall_alike():
    problem = dataclasses.replace(problem_with(None, LATENCY, "params"), limits=())
    study = run(problem, build_sampler("random", problem, seed=0, warm_start=3), 3)
    assert build_sampler("random", problem, seed=0, warm_start=3).count == 3
    largest = [max(np.array(t.values[1:]) / problem.dense_costs) for t in study.trials]
    assert largest == sorted(largest, reverse=True)
