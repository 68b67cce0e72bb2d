import numpy as np
import pytest

from autoprune.strategy.levels import LevelGrid, plateau_levels
from autoprune.strategy.space import Dimension, SearchSpace
from autoprune.strategy.variation import crossed, linkage, mutated
from autoprune.testing.samplers import made_up_problem


@pytest.fixture
def problem():
    return made_up_problem(4, 32, multiple=4)


def rows(space, count, *, ratio=0.25, dropped=False):
    return np.full((count, len(space.sizes)), ratio), np.full((count, len(space.blocks)), dropped)


def test_every_gene_is_replaced_by_another_level_with_equal_probability(problem):
    space, grid = problem.space, plateau_levels(problem)
    before = rows(space, 2000)
    ratios, gone = mutated(space, grid, *before, np.random.default_rng(0), probability=1.0)
    kept = space.active(~gone)
    assert (ratios != 0.25)[kept].all()
    widths = np.rint(32 * (1 - ratios[:, 0])).astype(int)
    values, counts = np.unique(widths, return_counts=True)
    assert values.tolist() == [w for w in sorted(grid.widths[0]) if w != 24]
    # Seven others of 2,000 draws: 286 each, outside of 200 to 380 with a probability below 1e-6.
    assert counts.min() > 200
    assert counts.max() < 380


def test_the_probability_is_that_of_each_gene(problem):
    space, grid = problem.space, plateau_levels(problem)
    before = rows(space, 4000)
    ratios, gone = mutated(space, grid, *before, np.random.default_rng(1), probability=0.1)
    # Each of 20,000 genes changes with 0.1: standard deviation 0.002; five of them.
    assert abs((ratios != 0.25).mean() - 0.1) < 0.012
    levels = grid.widths.shape[1]
    # Of 16,000 blocks: standard deviation below 0.001.
    assert abs(gone.mean() - 0.1 / levels) < 0.005
    same = mutated(space, grid, *before, np.random.default_rng(1), probability=0.0)
    assert (same[0] == before[0]).all()
    assert not same[1].any()


def test_groups_of_blocks_that_come_back_are_drawn(problem):
    space, grid = problem.space, plateau_levels(problem)
    ratios, gone = rows(space, 200, ratio=0.0, dropped=True)
    ratios[:, 0] = 0.25
    new, after = mutated(space, grid, ratios, gone, np.random.default_rng(2), probability=0.999)
    back = ~after
    assert back.mean() > 0.98
    drawn = np.rint(32 * (1 - new[:, 1][back[:, 0]])).astype(int)
    assert set(drawn) == set(grid.widths[1].tolist())


def test_a_group_with_one_level_and_a_frozen_block_stay():
    space = SearchSpace((Dimension("a", 8, 8), Dimension("b", 8, 4, 4)), ("x",), (False,), ((),))
    grid = LevelGrid.of([np.array([8]), np.array([8, 4])])
    before = np.zeros((20, 2)), np.zeros((20, 1), bool)
    ratios, gone = mutated(space, grid, *before, np.random.default_rng(0), probability=1.0)
    assert (ratios == np.array([0.0, 0.5])).all()
    assert not gone.any()


def test_children_take_blocks_with_their_groups_from_either_parent(problem):
    space = problem.space
    first = rows(space, 400, ratio=0.25, dropped=False)
    second = rows(space, 400, ratio=0.5, dropped=True)
    ratios, gone = crossed(space, first, second, np.random.default_rng(3))
    assert set(np.unique(ratios)) == {0.25, 0.5}
    # Group i + 1 lives in block i.
    assert ((ratios[:, 1:] == 0.5) == gone).all()
    shares = np.concatenate([(ratios == 0.5).mean(axis=0), gone.mean(axis=0)])
    # Of 400 fair coins: standard deviation 0.025; five of them.
    assert np.abs(shares - 0.5).max() < 0.125
    assert np.abs(np.corrcoef(gone.T) - np.eye(4)).max() < 0.3


def test_groups_follow_their_innermost_block():
    dims = tuple(Dimension(name, 8, 4) for name in "abc")
    space = SearchSpace(dims, ("in", "out"), (True, True), ((0,), (0, 1)))
    assert linkage(space).tolist() == [0, 1, 4]
