import itertools

import numpy as np
import pytest

from autoprune.errors import BudgetError
from autoprune.strategy.allocation import Allocator
from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.levels import LevelGrid
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Dimension, SearchSpace
from autoprune.testing.samplers import PROBLEMS, MadeUpLatency, made_up_problem


def random_instance(rng, groups=5, levels=4, blocks=0, *, monotone=True):
    """Return an allocator and costs of a problem made of random tables."""
    space = SearchSpace(
        tuple(Dimension(f"g{index}", levels, 1) for index in range(groups)),
        tuple(f"b{index}" for index in range(blocks)),
        (True,) * blocks,
        tuple((index,) for index in range(blocks)),
        None if not blocks else max(1, blocks // 2),
    )
    edges = np.array(list(itertools.combinations(range(groups), 2)))
    unary = rng.uniform(size=(groups, levels))
    pairs = 0.3 * rng.uniform(size=(len(edges), levels, levels))
    own = rng.uniform(size=(groups, levels))
    joint = 0.3 * rng.uniform(size=(len(edges), levels, levels))
    if monotone:
        unary = np.cumsum(unary, axis=1) - unary[:, :1]
        own = np.cumsum(own, axis=1)[:, ::-1]
        joint = np.cumsum(np.cumsum(joint, axis=1), axis=2)[:, ::-1, ::-1] / levels

    def latency(widths, keep):
        level, active = levels - widths, space.active(keep)
        a, b = edges.T
        met = joint[np.arange(len(edges)), level[:, a], level[:, b]] * active[:, a] * active[:, b]
        return 1.0 + (own[np.arange(groups), level] * active).sum(axis=1) + met.sum(axis=1)

    grid = LevelGrid.of([np.arange(levels, 0, -1)] * groups)
    damage = 0.5 * levels * rng.uniform(size=(1, blocks))
    costs = Costs(unary[None], damage, edges, pairs[None])
    return Allocator(Problem(space, latency), grid=grid), costs


def brute_force(allocator, costs):
    """Return cost and latency of every candidate."""
    space = allocator.problem.space
    counts = allocator.grid.counts.tolist()
    levels = np.array(list(itertools.product(*(range(count) for count in counts))))
    flags = itertools.product([True, False], repeat=len(space.blocks))
    most = len(space.blocks) if space.max_dropped is None else space.max_dropped
    allowed = [kept for kept in flags if kept.count(False) <= most]
    keep = np.array(allowed, bool).reshape(len(allowed), len(space.blocks))
    levels, keep = np.repeat(levels, len(keep), axis=0), np.tile(keep, (len(levels), 1))
    widths = np.where(
        space.active(keep),
        allocator.grid.widths[np.arange(len(counts)), levels],
        space.sizes,
    )
    cost = costs.at(space, levels, keep, np.zeros(len(levels), int))
    return cost, allocator.problem.predict(widths, keep)


@pytest.mark.parametrize(
    ("monotone", "blocks", "count"), [(True, 0, 100), (False, 0, 30), (True, 3, 30)]
)
def test_within_a_per_cent_of_brute_force(monotone, blocks, count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        allocator, costs = random_instance(rng, blocks=blocks, monotone=monotone)
        cost, ms = brute_force(allocator, costs)
        budget = float(np.quantile(ms, rng.uniform(0.02, 0.8)))
        point = allocator.allocate(costs, budget)
        assert point.ms[0] <= budget
        assert point.cost[0] <= cost[ms <= budget].min() * 1.01 + 1e-9


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_solutions_are_feasible_and_better_than_uniform(name):
    problem = PROBLEMS[name]
    damage = Damage.quadratic(problem.space)
    allocator = Allocator(problem)
    low, high = problem.fastest[1], problem.dense_ms
    for budget in np.linspace(low, high, 5).tolist():
        found = allocator.solve(Costs.of_damage(allocator.grid, damage), budget)
        assert problem.latency_ms([found])[0] <= budget
        assert problem.space.snap(found) == found


def test_tighter_than_anything_is_an_error():
    problem = made_up_problem()
    allocator = Allocator(problem)
    costs = Costs.of_damage(allocator.grid, Damage.quadratic(problem.space))
    with pytest.raises(BudgetError, match="the fastest needs"):
        allocator.solve(costs, 0.9 * problem.fastest[1])


def test_plateaus_are_left_at_their_wide_end():
    problem = made_up_problem(latency=MadeUpLatency(padding=8), multiple=1, droppable=False)
    allocator = Allocator(problem)
    costs = Costs.of_damage(allocator.grid, Damage.quadratic(problem.space))
    found = allocator.solve(costs, 0.5 * problem.dense_ms)
    assert set(problem.space.widths([found])[0].tolist()) <= {8, 16, 24, 32}
