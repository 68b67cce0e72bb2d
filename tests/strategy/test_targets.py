import math

import numpy as np
import pytest

from autoprune.strategy.rays import on_ray
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import (
    at_position,
    directions,
    positions_at,
    random_at,
    reach,
    reach_rows,
    target_ms,
)
from autoprune.testing.samplers import MadeUpLatency, made_up_problem


def test_with_a_budget_every_trial_aims_at_it():
    problem = made_up_problem(budget=0.4)
    assert {target_ms(problem, number) for number in range(5)} == {problem.budget_ms}


def test_without_one_targets_cover_the_logarithm_of_the_range():
    problem = made_up_problem()
    low, high = problem.fastest[1], problem.dense_ms
    shares = [
        math.log(target_ms(problem, number) / low) / math.log(high / low) for number in range(50)
    ]
    assert min(shares) >= 0.0
    assert max(shares) <= 1.0
    # Fifty points at best leave gaps of 0.02; those of the golden ratio are not much larger.
    assert np.diff(sorted([0.0, *shares, 1.0])).max() < 0.04
    assert target_ms(problem, 3) == pytest.approx(low * (high / low) ** (4 * 0.6180339887 % 1))


@pytest.mark.parametrize("start", [0.1, 0.6])
@pytest.mark.parametrize("latency", [MadeUpLatency(), MadeUpLatency(padding=4)])
def test_reached_from_either_side_and_filled(start, latency):
    problem = made_up_problem(4, 32, latency=latency)
    space, limit = problem.space, 0.4 * problem.dense_ms
    given = Candidate((start, start / 2, start, 0.0, start / 3), (False,) * 4)
    found = reach(problem, given, limit)
    assert problem.latency_ms([found])[0] <= limit
    widths, keep = space.widths([found])[0], space.keep([found])
    for group, dim in enumerate(space.dimensions):
        for width in dim.widths[dim.widths > widths[group]]:
            wider = widths.copy()
            wider[group] = width
            assert problem.predict(wider[None], keep)[0] > limit
    assert found.ratios[3] == 0.0
    assert found.ratios[0] / found.ratios[4] == pytest.approx(3.0, rel=0.5)


def test_rows_are_what_rays_are_one_by_one():
    problem = made_up_problem(4, 128, multiple=1)
    rng = np.random.default_rng(0)
    parts, dropped = rng.random((20, 5)), rng.random((20, 4)) < 0.2
    limit = 0.35 * problem.dense_ms
    widths, keep, fits = reach_rows(problem, parts, dropped, limit)
    ms = problem.predict(widths, keep)
    assert fits.all()
    assert (ms <= limit).all()
    exact = [on_ray(problem, row, gone, limit) for row, gone in zip(parts, dropped, strict=True)]
    # Five guesses come close to the point that on_ray finds among 32,768.
    assert np.abs(ms - problem.latency_ms(exact)).max() < 0.1 * limit
    assert np.abs(widths - problem.space.widths(exact)).mean() < 3.0
    assert (keep == problem.space.keep(exact)).all()


def test_rows_that_cannot_reach_say_so_and_those_that_need_nothing_stay_whole():
    problem = made_up_problem(4, 32)
    parts = np.array([[1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.1]])
    none = np.zeros((2, 4), bool)
    _, _, fits = reach_rows(problem, parts, none, 0.2 * problem.dense_ms)
    assert fits.tolist() == [True, False]
    widths, _, fits = reach_rows(problem, parts, none, 2.0 * problem.dense_ms)
    assert fits.all()
    assert (widths == 32).all()


def test_positions_of_gone_groups_are_the_others_mean():
    problem = made_up_problem(3, 64, multiple=1)
    ratios = np.array([[0.5, 0.2, 0.0, 0.4]])
    dropped = np.array([[False, True, False]])
    limit = float(problem.latency_ms([Candidate((0.5, 0.2, 0.0, 0.4), (False, True, False))])[0])
    parts = positions_at(problem, ratios, dropped, limit)[0]
    largest = 1.0 - problem.space.smallest_widths / 64
    expected = np.array([0.5, 0.2, 0.0, 0.4]) / largest
    expected[2] = expected[[0, 1, 3]].mean()
    assert parts == pytest.approx(expected, abs=0.05)


def test_points_are_clipped_and_scaled():
    problem = made_up_problem(3, 64, multiple=1)
    limit = 0.3 * problem.dense_ms
    found = at_position(
        problem, np.array([-1.0, 0.4, 0.4, 3.0]), np.array([False, False, False]), limit
    )
    assert problem.latency_ms([found])[0] <= limit
    assert found.ratios[0] == 0.0
    # Further along its ray; filling then gives back a unit or two.
    assert found.ratios[3] >= problem.space.dimensions[3].max_ratio - 2 / 64


def test_frozen_groups_have_no_direction():
    problem = made_up_problem(1, 8, multiple=8)
    assert directions(problem, np.array([[0.0, 0.0]])).tolist() == [[0.0, 0.0]]


def test_random_candidates_use_the_latency_they_may():
    problem = made_up_problem(6, 64, multiple=1, droppable=False)
    rng = np.random.default_rng(1)
    drawn = [random_at(problem, rng, 0.5 * problem.dense_ms) for _ in range(10)]
    ms = problem.latency_ms(drawn)
    assert (ms <= 0.5 * problem.dense_ms).all()
    assert (ms > 0.48 * problem.dense_ms).all()
    assert len(set(drawn)) == 10
