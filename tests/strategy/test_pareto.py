import itertools

import numpy as np
import pytest

from autoprune.errors import RunError
from autoprune.strategy.pareto import hypervolume, knee, pareto_mask


def beats(a, b):
    return a[0] >= b[0] and a[1] <= b[1] and (a[0] > b[0] or a[1] < b[1])


def instances(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        size = int(rng.integers(1, 40))
        # Few distinct values, so that there are ties in one and in both.
        steps = int(rng.choice([3, 6, 1000]))
        accuracy = rng.integers(0, steps, size) / steps
        latency_ms = rng.integers(1, steps + 1, size) / steps * 10.0
        yield accuracy, latency_ms


def test_mask_equals_pairwise_comparison():
    for accuracy, latency_ms in instances(200):
        points = list(zip(accuracy.tolist(), latency_ms.tolist(), strict=True))
        expected = [
            not any(beats(other, point) for other in points) and point not in points[:index]
            for index, point in enumerate(points)
        ]
        assert pareto_mask(accuracy, latency_ms).tolist() == expected


def test_mask_leaves_out_what_is_not_finite():
    accuracy = np.array([np.nan, 0.5, 0.9, 0.8])
    latency_ms = np.array([1.0, np.nan, 3.0, np.inf])
    assert pareto_mask(accuracy, latency_ms).tolist() == [False, False, True, False]


def test_mask_of_nothing():
    assert pareto_mask(np.zeros(0), np.zeros(0)).shape == (0,)


def test_hypervolume_equals_integration():
    for accuracy, latency_ms in instances(100):
        dense_ms = 8.0
        # The best accuracy changes at multiples of 1/100 ms only where steps divide them, so
        # integrate between all latencies that occur.
        edges = np.unique(np.concatenate([[0.0, dense_ms], latency_ms[latency_ms < dense_ms]]))
        area = 0.0
        for left, right in itertools.pairwise(edges):
            middle = (left + right) / 2
            area += (right - left) * max(accuracy[latency_ms <= middle], default=0.0)
        assert hypervolume(accuracy, latency_ms, dense_ms=dense_ms) == pytest.approx(area / 8.0)


def test_hypervolume_equals_monte_carlo():
    rng = np.random.default_rng(1)
    accuracy, latency_ms = rng.uniform(size=30), rng.uniform(0, 12, size=30)
    budgets, levels = rng.uniform(0, 10, size=200_000), rng.uniform(size=200_000)
    reached = np.where(latency_ms <= budgets[:, None], accuracy, 0.0).max(axis=1)
    # The standard error is below 0.0012, so this fails by chance for less than one seed in 1e9
    # (6.2 sigma); the seed is fixed.
    expected = (levels < reached).mean()
    assert hypervolume(accuracy, latency_ms, dense_ms=10.0) == pytest.approx(expected, abs=0.0075)


def test_hypervolume_bounds():
    assert hypervolume(np.array([1.0]), np.array([0.0]), dense_ms=5.0) == 1.0
    assert hypervolume(np.array([1.0]), np.array([5.0]), dense_ms=5.0) == 0.0
    assert hypervolume(np.zeros(0), np.zeros(0), dense_ms=5.0) == 0.0
    assert hypervolume(np.array([np.nan]), np.array([1.0]), dense_ms=5.0) == 0.0


def test_hypervolume_only_grows_with_points():
    for accuracy, latency_ms in instances(50):
        values = [
            hypervolume(accuracy[:n], latency_ms[:n], dense_ms=10.0) for n in range(len(accuracy))
        ]
        assert (np.diff(values) >= -1e-12).all()


def test_knee_is_farthest_from_the_chord():
    latency_ms = np.array([1.0, 2.0, 4.0, 8.0, 3.0])
    accuracy = np.array([0.2, 0.8, 0.85, 0.9, 0.1])
    ends = np.array([1.0, 0.2]), np.array([8.0, 0.9])
    scale = ends[1] - ends[0]

    def distance(index):
        x, y = (np.array([latency_ms[index], accuracy[index]]) - ends[0]) / scale
        return (y - x) / np.sqrt(2)

    best = max(range(4), key=distance)
    assert knee(accuracy, latency_ms) == best == 1


@pytest.mark.parametrize(
    ("accuracy", "latency_ms", "expected"),
    [
        ([0.5], [1.0], 0),
        ([0.5, 0.9], [1.0, 2.0], 1),
        ([0.5, 0.7, 0.9], [1.0, 2.0, 3.0], 2),
        ([0.5, 0.51, 0.9], [1.0, 2.0, 3.0], 2),
        ([np.nan, 0.4], [1.0, 2.0], 1),
    ],
)
def test_knee_without_a_bend_is_the_most_accurate(accuracy, latency_ms, expected):
    assert knee(np.array(accuracy), np.array(latency_ms)) == expected


def test_no_knee_without_points():
    with pytest.raises(RunError, match="at least one evaluated candidate"):
        knee(np.array([np.nan]), np.array([1.0]))


def scattered(rng, points, costs):
    """Return points with ties in every axis."""
    return rng.integers(0, 6, points) / 6.0, rng.integers(1, 6, (points, costs)) * 1.0


@pytest.mark.parametrize("costs", [2, 3])
def test_mask_of_several_costs_is_that_of_all_comparisons(costs):
    rng = np.random.default_rng(costs)
    for _ in range(20):
        accuracy, columns = scattered(rng, 30, costs)
        values = np.column_stack([-accuracy, columns])
        expected = [
            not any(
                (other <= mine).all() and ((other < mine).any() or j < i)
                for j, other in enumerate(values)
                if j != i
            )
            for i, mine in enumerate(values)
        ]
        assert pareto_mask(accuracy, columns).tolist() == expected


def test_mask_of_several_costs_leaves_out_what_is_not_known():
    accuracy = np.array([np.nan, 0.5, 0.9])
    columns = np.array([[1.0, 1.0], [2.0, 2.0], [2.0, np.inf]])
    assert pareto_mask(accuracy, columns).tolist() == [False, True, False]


@pytest.mark.parametrize("costs", [2, 3])
def test_hypervolume_of_several_costs_is_the_mean_over_budgets(costs):
    rng = np.random.default_rng(7 + costs)
    dense = np.arange(1.0, costs + 1.0)
    for _ in range(5):
        accuracy = rng.uniform(size=12)
        columns = rng.integers(1, 14, (12, costs)) / 10.0 * dense  # some beyond the dense network
        # Costs lie on tenths, so the middles of tenths are all there is to know.
        grid = np.meshgrid(*[(np.arange(10) + 0.5) / 10.0 * d for d in dense], indexing="ij")
        budgets = np.stack([axis.ravel() for axis in grid], axis=1)
        within = (columns[None] <= budgets[:, None]).all(axis=2)
        reached = (within * accuracy).max(axis=1)
        found = hypervolume(accuracy, columns, dense_ms=dense)
        assert found == pytest.approx(reached.mean())
    assert hypervolume(np.zeros(0), np.zeros((0, costs)), dense_ms=dense) == 0.0


def test_one_column_is_one_cost():
    rng = np.random.default_rng(0)
    accuracy, latency_ms = rng.uniform(size=20), rng.uniform(size=20)
    column = latency_ms[:, None]
    assert (pareto_mask(accuracy, column) == pareto_mask(accuracy, latency_ms)).all()
    both = [hypervolume(accuracy, each, dense_ms=0.9) for each in (column, latency_ms)]
    assert both[0] == both[1]
    assert knee(accuracy, column) == knee(accuracy, latency_ms)


def test_knee_weighs_costs_alike():
    accuracy = np.array([0.5, 0.8, 0.8, 0.9])
    costs = np.array([[1.0, 1.0], [2.0, 9.0], [2.0, 2.0], [9.0, 9.0]])
    assert knee(accuracy, costs) == 2
