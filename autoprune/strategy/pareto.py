"""Pareto fronts of accuracy against costs: which points, how good, and the knee."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

# The one maintained implementation at hand for any number of objectives; Optuna keeps it private.
from optuna._hypervolume import compute_hypervolume

from autoprune.errors import RunError

#: One cost per point, or a column for each of several.
Axes = Float[np.ndarray, " n"] | Float[np.ndarray, "n costs"]


def pareto_mask(accuracy: Float[np.ndarray, " n"], costs: Axes) -> Bool[np.ndarray, " n"]:
    """Return which points no other point beats; O(n log n) with one cost.

    A point beats another if it is at least as accurate and costs at most as much of everything, and
    is better in something. Of points that are equal in all, the first is kept.

    >>> pareto_mask(np.array([0.9, 0.8, 0.8, 0.9]), np.array([5.0, 4.0, 5.0, 5.0])).tolist()
    [True, True, False, False]

    Args:
        accuracy: Fraction correct; higher is better. Points with a NaN are on no front.
        costs: Latency in ms, or a column for each of several costs; lower is better.
    """
    columns = _columns(costs)
    mask = np.zeros(len(accuracy), bool)
    usable = np.flatnonzero(np.isfinite(accuracy) & np.isfinite(columns).all(axis=1))
    if columns.shape[1] != 1:
        mask[_among_several(usable, accuracy, columns)] = True
        return mask
    latency_ms = columns[:, 0]
    # Fastest first; of equally fast ones the most accurate; of equal ones the first (stable).
    order = usable[np.lexsort((-accuracy[usable], latency_ms[usable]))]
    best_before = np.maximum.accumulate(np.append(-np.inf, accuracy[order]))[:-1]
    mask[order[accuracy[order] > best_before]] = True
    return mask


def _among_several(
    usable: Int[np.ndarray, " m"],
    accuracy: Float[np.ndarray, " n"],
    costs: Float[np.ndarray, "n costs"],
) -> list[int]:
    """Return which of the usable points are on the front."""
    # Whoever comes later is not better in the first thing that differs, so beats nobody before.
    order = usable[np.lexsort((*costs[usable].T[::-1], -accuracy[usable]))]
    front: list[int] = []
    for point in order.tolist():
        if not (costs[front] <= costs[point]).all(axis=1).any():
            front.append(point)
    return front


def _columns(costs: Axes) -> Float[np.ndarray, "n costs"]:
    return costs[:, None] if costs.ndim == 1 else costs


def hypervolume(
    accuracy: Float[np.ndarray, " n"],
    costs: Axes,
    *,
    dense_ms: float | Float[np.ndarray, " costs"],
) -> float:
    """Return the mean, over all latency budgets up to the dense network's, of the accuracy reached.

    That is the integral over budgets t in [0, dense_ms] of the best accuracy at latency <= t (0
    where no point is as fast), divided by dense_ms: the area under the front, between 0 and 1. With
    several costs it is the mean over all vectors of budgets, of the best accuracy within all of
    them: the hypervolume [Zitzler1999].

    >>> hypervolume(np.array([0.5, 0.75]), np.array([2.0, 6.0]), dense_ms=8.0)
    0.4375

    Args:
        accuracy: Fraction correct, in [0, 1]; points with a NaN do not count.
        costs: Latency in ms, or a column for each of several costs.
        dense_ms: Latency of the unpruned network in ms, or each of its costs.

    References:
        [Zitzler1999] Zitzler, Thiele. Multiobjective Evolutionary Algorithms: A Comparative Case
        Study and the Strength Pareto Approach. IEEE Transactions on Evolutionary Computation 3(4),
        1999.
    """
    columns, dense = _columns(costs), np.atleast_1d(dense_ms)
    counts = np.isfinite(accuracy) & (columns < dense).all(axis=1)
    if len(dense) > 1:
        minimised = np.column_stack([-accuracy, columns / dense])[counts]
        reference = np.append(0.0, np.ones(len(dense)))
        return compute_hypervolume(minimised, reference) if len(minimised) else 0.0
    latency_ms = columns[:, 0]
    order = np.argsort(latency_ms[counts], kind="stable")
    reached = np.maximum.accumulate(accuracy[counts][order])
    edges = np.append(np.maximum(latency_ms[counts][order], 0.0), dense[0])
    return float((reached * np.diff(edges)).sum() / dense[0])


def knee(accuracy: Float[np.ndarray, " n"], costs: Axes) -> int:
    """Return the index of the front's knee: the point farthest above the line between its ends.

    All axes are scaled to the front's extent; of several costs the mean counts. Where no point is
    above the line, as with a front of two points, the most accurate one is the knee.

    >>> knee(np.array([0.5, 0.85, 0.9]), np.array([1.0, 2.0, 9.0]))
    1

    Args:
        accuracy: Fraction correct; points with a NaN do not count.
        costs: Latency in ms, or a column for each of several costs.

    Raises:
        RunError: There is no point.
    """
    columns = _columns(costs)
    front = np.flatnonzero(pareto_mask(accuracy, columns))
    if not len(front):
        raise RunError("a knee needs at least one evaluated candidate, got none; see the failures")
    cost = np.mean([_scaled(column[front]) for column in columns.T], axis=0)
    gain = _scaled(accuracy[front]) - cost
    # The ends are at 0; rounding must not put a point of the line above them.
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return int(front[best[np.argmax(accuracy[front[best]])]])


def _scaled(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    extent = values.max() - values.min()
    scaled: Float[np.ndarray, " n"] = (values - values.min()) / (extent if extent > 0 else 1.0)
    return scaled
