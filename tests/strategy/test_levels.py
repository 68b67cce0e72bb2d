import numpy as np
import pytest

from autoprune.strategy.levels import LevelGrid, plateau_levels
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Dimension, SearchSpace
from autoprune.testing.samplers import MadeUpLatency, made_up_problem


def naive_edges(problem, group, share):
    """Return widths that are faster than all wider ones, one prediction at a time."""
    space = problem.space
    base = [
        dim.widths[np.argmin(np.abs(dim.widths / dim.size - share))] for dim in space.dimensions
    ]
    edges, least = [], np.inf
    for width in reversed(space.dimensions[group].widths.tolist()):
        row = np.array([base])
        row[0, group] = width
        ms = problem.predict(row, np.ones((1, len(space.blocks)), bool))[0]
        if ms < least - 1e-9 * problem.dense_ms:
            edges.append(width)
            least = ms
    return edges


@pytest.mark.parametrize("bumps", [0.0, 0.3])
def test_levels_are_the_edges_of_plateaus(bumps):
    latency = MadeUpLatency(padding=4, bumps=bumps)
    problem = made_up_problem(3, 32, latency=latency, multiple=1)
    grid = plateau_levels(problem, most=40)
    for group, dim in enumerate(problem.space.dimensions):
        expected = {1, 32, *naive_edges(problem, group, 1.0), *naive_edges(problem, group, 0.5)}
        levels = grid.widths[group, : grid.counts[group]].tolist()
        assert levels == sorted(expected, reverse=True)
        assert set(levels) <= set(dim.widths.tolist())
    if not bumps:
        assert grid.widths[1].tolist() == [32, 28, 24, 20, 16, 12, 8, 4, 1]


def test_too_many_edges_are_thinned_evenly():
    problem = made_up_problem(1, 100, multiple=1)
    grid = plateau_levels(problem, most=16)
    assert grid.widths.shape == (2, 16)
    assert grid.widths[0, 0] == 100
    assert grid.widths[0, -1] == 1
    steps = -np.diff(grid.widths[0])
    assert steps.min() >= 6
    assert steps.max() <= 7


def test_groups_without_a_choice_have_one_level():
    space = SearchSpace((Dimension("a", 8, 8), Dimension("b", 8, 4, 4)))
    grid = plateau_levels(Problem(space, MadeUpLatency()))
    assert grid.counts.tolist() == [1, 2]
    assert grid.widths.tolist() == [[8, 8], [8, 4]]
    assert grid.valid.tolist() == [[True, False], [True, True]]


def test_no_groups():
    grid = plateau_levels(Problem(SearchSpace(()), lambda widths, keep: np.ones(len(widths))))
    assert grid.counts.shape == (0,)


def test_nearest_level():
    grid = LevelGrid.of([np.array([32, 16, 4]), np.array([8])])
    assert grid.nearest(np.array([[24, 8], [23, 1], [9, 2]])).tolist() == [[0, 0], [1, 0], [2, 0]]
