import math

import numpy as np
import pytest

from autoprune.strategy.budget import project
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.samplers.fastnas import FastNAS
from autoprune.strategy.space import Candidate
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
        return SAMPLERS["fastnas"]


def alone(problem, group, fraction):
    """Return the candidate with one group at a fraction of its largest ratio."""
    ratios = [0.0] * len(problem.space.dimensions)
    ratios[group] = fraction * problem.space.dimensions[group].max_ratio
    return problem.space.snap(Candidate(tuple(ratios), (False,) * len(problem.space.blocks)))


@pytest.mark.parametrize("budget", [None, 0.5])
def test_the_map_comes_first_narrowest_widths_before_wider_ones(budget):
    problem = made_up_problem(4, 32, budget=budget)
    # Five groups and four blocks: two widths of each group.
    sampler = SAMPLERS["fastnas"](problem, seed=0, evaluations=14)
    with quiet_optuna():
        proposed = run_trials(new_study(sampler), problem, 15, batch=5)
    assert proposed[0] == project(problem, problem.space.dense())
    narrow = [project(problem, alone(problem, group, 2 / 3)) for group in range(5)]
    wide = [project(problem, alone(problem, group, 1 / 3)) for group in range(5)]
    flags = [tuple(b == index for b in range(4)) for index in range(4)]
    blocks = [project(problem, Candidate((0.0,) * 5, dropped)) for dropped in flags]
    assert proposed[1:6] == narrow
    # With a budget two of them may complete to the same network.
    assert set(proposed[6:15]) >= set(wide + blocks) - set(proposed[:6])


def test_wider_widths_of_a_group_that_bears_a_narrow_one_are_not_tried():
    problem = made_up_problem(4, 32, droppable=False)

    def loss(space, candidate):
        # Group 2 may lose whatever it likes.
        return 1.0 + sum(candidate.ratios) - candidate.ratios[2]

    sampler = SAMPLERS["fastnas"](problem, seed=0, evaluations=15)
    with quiet_optuna():
        proposed = run_trials(new_study(sampler), problem, 14, loss=loss)
    tried = [[alone(problem, g, f) in proposed for f in (0.25, 0.5, 0.75)] for g in range(5)]
    assert tried == [[True] * 3] * 2 + [[False, False, True]] + [[True] * 3] * 2


def test_the_largest_sensitivity_is_as_small_as_the_latency_allows():
    problem = made_up_problem(4, 64, multiple=1, droppable=False)
    space = problem.space
    weight = np.array([1.0, 5.0, 0.5, 2.0, 8.0])

    def loss(candidate):
        return 0.1 + float((weight * np.array(candidate.ratios) ** 2).sum())

    sampler = FastNAS(problem, seed=0, evaluations=10, tolerance=1e-5)
    curves = sampler.curves(loss)
    choices = np.linspace(0, 1, 21)
    largest = np.array([dim.max_ratio for dim in space.dimensions])
    # Interpolation in the squared ratio is exact here, but for the grid of widths.
    exact = weight[:, None] * (choices * largest[:, None]) ** 2
    assert curves[:5] == pytest.approx(exact, rel=0.1, abs=1e-9)
    for limit in (0.7, 0.4, 0.2):
        # Brute force over all thresholds that make a difference.
        best = None
        for threshold in np.unique(curves[:5]):
            ratios = [choices[row <= threshold].max() for row in curves[:5]] * largest
            found = space.snap(Candidate(tuple(ratios.tolist()), (False,) * 4))
            if problem.latency_ms([found])[0] <= limit * problem.dense_ms:
                best = found
                break
        positions = np.linspace(0, 1, 4001)
        widths, keep = sampler.path(curves, positions)
        first = int(np.argmax(problem.predict(widths, keep) <= limit * problem.dense_ms))
        assert space.candidates(widths[first : first + 1], keep[:1])[0] == best


def test_blocks_go_with_the_threshold_the_least_sensitive_first():
    problem = made_up_problem(4, 32)
    damage = [0.3, 0.1, 0.4, 0.2]

    def loss(candidate):
        blocks = sum(d for d, gone in zip(damage, candidate.dropped, strict=True) if gone)
        return 100.0 * sum(ratio**2 for ratio in candidate.ratios) + blocks

    sampler = FastNAS(problem, seed=0, evaluations=60, tolerance=1e-5)
    keep = sampler.path(sampler.curves(loss), np.linspace(0, 1, 2001))[1]
    # At most half of the blocks may go.
    assert np.unique(~keep, axis=0).tolist() == [
        [False, False, False, False],
        [False, True, False, False],
        [False, True, False, True],
    ]


def test_unknown_groups_count_as_the_median_and_failed_widths_are_not_taken():
    problem = made_up_problem(4, 32, droppable=False)
    sampler = FastNAS(problem, seed=0, evaluations=10, tolerance=1e-5)
    failed, pending = alone(problem, 0, 2 / 3), [alone(problem, 3, f) for f in (1 / 3, 2 / 3)]

    def loss(candidate):
        if candidate == failed:
            return math.inf
        return math.nan if candidate in pending else sum(r**2 for r in candidate.ratios)

    curves = sampler.curves(loss)
    choices = np.linspace(0, 1, 21)
    assert np.isinf(curves[0][choices >= 2 / 3]).all()
    assert np.isfinite(curves[0][choices < 2 / 3]).all()
    assert curves[3].tolist() == curves[-1].tolist()
    # All groups are alike here, so that the median of them is each of them.
    assert curves[[1, 2, 4]] == pytest.approx(np.tile(curves[3], (3, 1)), rel=0.1)
    assert (np.diff(curves[1:], axis=1) >= 0).all()


def test_more_groups_than_evaluations_leave_trials_for_the_ladder():
    problem = made_up_problem(12, 16)
    sampler = SAMPLERS["fastnas"](problem, seed=0, evaluations=5)
    with quiet_optuna():
        proposed = run_trials(new_study(sampler), problem, 12)
    pruned = [sum(ratio > 0 for ratio in candidate.ratios) for candidate in proposed]
    assert sorted(pruned[:6]) == [0, 1, 1, 1, 1, 1]
    assert min(pruned[7:]) > 5


def test_with_a_budget_what_is_saved_alone_is_paid_back():
    problem = made_up_problem(4, 64, budget=0.5, multiple=1, droppable=False)
    sampler = FastNAS(problem, seed=0, evaluations=5, tolerance=1e-5)

    def loss(candidate):
        return made_up_loss(problem.space, project(problem, candidate))

    curves = sampler.curves(loss)
    assert (curves >= 0).all()
    assert np.isfinite(curves).all()
    # Group 0 has damage 1, as group 5 would; of the inner groups 3 bears most (2), then 1, 4, 2.
    weight = 1.0 + np.arange(5) * 7 % 5
    order = np.argsort(weight[1:])
    assert np.argsort(curves[1:5, 10]).tolist() == order.tolist()
