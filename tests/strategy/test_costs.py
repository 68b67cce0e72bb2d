import numpy as np

from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.levels import plateau_levels
from autoprune.testing.samplers import made_up_problem


def random_costs(rng, groups, levels, blocks, draws):
    edges = np.array([(a, b) for a in range(groups) for b in range(a) if rng.uniform() < 0.6])
    edges = edges.reshape(-1, 2)
    return Costs(
        rng.uniform(size=(draws, groups, levels)),
        rng.uniform(size=(draws, blocks)),
        edges,
        rng.normal(size=(draws, len(edges), levels, levels)),
    )


def naive(costs, space, levels, keep, draw):
    """Return the cost of one candidate, added up term by term."""
    gone = {g for b, inside in enumerate(space.inside) if not keep[b] for g in inside}
    total = sum(costs.blocks[draw, b] for b in range(len(keep)) if not keep[b])
    total += sum(costs.groups[draw, g, level] for g, level in enumerate(levels) if g not in gone)
    for e, (a, b) in enumerate(costs.edges.tolist()):
        if a not in gone and b not in gone:
            total += costs.pairs[draw, e, levels[a], levels[b]]
    return total


def test_costs_and_tables_are_sums_of_their_terms():
    rng = np.random.default_rng(0)
    space = made_up_problem(4, 8).space
    costs = random_costs(rng, 5, 3, 4, draws=2)
    levels, keep = rng.integers(3, size=(20, 5)), rng.uniform(size=(20, 4)) < 0.7
    draw = rng.integers(2, size=20)
    expected = [naive(costs, space, *row) for row in zip(levels, keep, draw, strict=True)]
    np.testing.assert_allclose(costs.at(space, levels, keep, draw), expected)
    tables = costs.tables(space, levels, keep, draw)
    active = space.active(keep)
    for row in range(20):
        for group in np.flatnonzero(active[row]):
            for level in range(3):
                moved = levels[row].copy()
                moved[group] = level
                rise = naive(costs, space, moved, keep[row], draw[row]) - expected[row]
                change = tables[row, group, level] - tables[row, group, levels[row, group]]
                np.testing.assert_allclose(change, rise, atol=1e-12)


def test_damage_at_the_levels():
    problem = made_up_problem(3, 16, multiple=4)
    grid, damage = plateau_levels(problem), Damage.quadratic(problem.space)
    costs = Costs.of_damage(grid, damage)
    levels = np.array([[0, 1, 2, 3], [1, 1, 1, 1]])
    keep = np.array([[True, True, True], [True, False, True]])
    widths = np.take_along_axis(grid.widths.T, levels, axis=0)
    np.testing.assert_allclose(
        costs.at(problem.space, levels, keep, np.zeros(2, int)),
        damage.at(problem.space, np.where(problem.space.active(keep), widths, 16), keep),
    )


def test_scale_is_the_largest_cost():
    rng = np.random.default_rng(0)
    costs = random_costs(rng, 3, 3, 2, draws=4)
    costs.blocks[1, 0], costs.groups[2, 0, 0], costs.pairs[3, 0, 0, 0] = 10.0, -20.0, 30.0
    assert costs.scale[1:].tolist() == [10.0, 20.0, 30.0]
