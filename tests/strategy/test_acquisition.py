import numpy as np
import pytest

from autoprune.strategy.acquisition import Front, expected_improvement, hypervolume_improvement

LOSS = np.array([0.9, 0.3, 0.5, 2.0, 0.4])
MS = np.array([2.0, 7.0, 4.0, 3.0, 6.0])


def front():
    return Front.of(LOSS, MS, fastest_ms=1.0, dense_ms=10.0, reference=1.2)


def area(loss, ms, measure=lambda t: t):
    """Return the area under the reference and above the staircase, one strip at a time."""
    points = sorted(zip(ms, loss, strict=True))
    total, best = 0.0, 1.2
    for index, (t, y) in enumerate(points):
        best = min(best, y)
        end = points[index + 1][0] if index + 1 < len(points) else 10.0
        total += (1.2 - best) * (
            measure(min(max(end, 1.0), 10.0)) - measure(min(max(t, 1.0), 10.0))
        )
    return total


def test_staircase():
    assert front().edges_ms.tolist() == [1.0, 2.0, 4.0, 6.0, 7.0, 10.0]
    assert front().best.tolist() == [1.2, 0.9, 0.5, 0.4, 0.3]
    assert [front().within(t) for t in (0.5, 1.5, 2.0, 6.5, 99.0)] == [1.2, 1.2, 0.9, 0.4, 0.3]


def test_nothing_evaluated():
    empty = Front.of(np.zeros(0), np.zeros(0), fastest_ms=1.0, dense_ms=10.0, reference=1.2)
    gain = hypervolume_improvement(empty, np.array([0.2]), np.array([1e-9]), np.array([4.0]))
    np.testing.assert_allclose(gain, [6.0])


@pytest.mark.parametrize("weighted", [False, True])
def test_against_monte_carlo(weighted):
    # The standard error of the simulated means is at most 0.6 %; the seed is fixed.
    rng = np.random.default_rng(0)
    measure = np.log if weighted else (lambda t: t)
    now = area(LOSS, MS, measure)
    for mean, std, ms in [(0.6, 0.2, 3.0), (0.2, 0.3, 5.0), (1.0, 0.4, 1.5), (0.4, 0.1, 0.5)]:
        draws = rng.normal(mean, std, 100_000)
        levels = np.linspace(mean - 6 * std, mean + 6 * std, 2001)
        gain = [area([*LOSS, y], [*MS, ms], measure) - now for y in levels]
        expected = np.interp(draws, levels, gain).mean()
        found = hypervolume_improvement(
            front(), np.array([mean]), np.array([std]), np.array([ms]), measure=measure
        )
        np.testing.assert_allclose(found, [expected], rtol=0.01)


def test_without_uncertainty_it_is_the_improvement():
    mean = np.array([0.2, 0.6, 0.95, 0.1])
    ms = np.array([6.5, 3.0, 5.0, 11.0])
    expected = [area([*LOSS, y], [*MS, t]) - area(LOSS, MS) for y, t in zip(mean, ms, strict=True)]
    expected[3] = 0.0
    found = hypervolume_improvement(front(), mean, np.full(4, 1e-9), ms)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_expected_improvement_grows_with_uncertainty_and_never_falls_below_zero():
    gain = expected_improvement(0.0, np.array([1.0, 1.0, 50.0]), np.array([0.5, 1.0, 1.0]))
    assert gain[0] < gain[1]
    assert gain[2] == 0.0
