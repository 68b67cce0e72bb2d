"""Pareto fronts of accuracy against latency: which points, how good, and the knee."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from autoprune.errors import RunError


def pareto_mask(
    accuracy: Float[np.ndarray, " n"], latency_ms: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Return which points no other point beats; O(n log n).

    A point beats another if it is at least as accurate and at least as fast, and better in one of
    the two. Of points that are equal in both, the first is kept.

    >>> pareto_mask(np.array([0.9, 0.8, 0.8, 0.9]), np.array([5.0, 4.0, 5.0, 5.0])).tolist()
    [True, True, False, False]

    Args:
        accuracy: Fraction correct; higher is better. Points with a NaN are on no front.
        latency_ms: Latency in ms; lower is better.
    """
    mask = np.zeros(len(accuracy), bool)
    usable = np.flatnonzero(np.isfinite(accuracy) & np.isfinite(latency_ms))
    # Fastest first; of equally fast ones the most accurate; of equal ones the first (stable).
    order = usable[np.lexsort((-accuracy[usable], latency_ms[usable]))]
    best_before = np.maximum.accumulate(np.append(-np.inf, accuracy[order]))[:-1]
    mask[order[accuracy[order] > best_before]] = True
    return mask


def hypervolume(
    accuracy: Float[np.ndarray, " n"], latency_ms: Float[np.ndarray, " n"], *, dense_ms: float
) -> float:
    """Return the mean, over all latency budgets up to the dense network's, of the accuracy reached.

    That is the integral over budgets t in [0, dense_ms] of the best accuracy at latency <= t (0
    where no point is as fast), divided by dense_ms: the area under the front, between 0 and 1.

    >>> hypervolume(np.array([0.5, 0.75]), np.array([2.0, 6.0]), dense_ms=8.0)
    0.4375

    Args:
        accuracy: Fraction correct, in [0, 1]; points with a NaN do not count.
        latency_ms: Latency in ms.
        dense_ms: Latency of the unpruned network in ms.
    """
    counts = np.isfinite(accuracy) & (latency_ms < dense_ms)
    order = np.argsort(latency_ms[counts], kind="stable")
    reached = np.maximum.accumulate(accuracy[counts][order])
    edges = np.append(np.maximum(latency_ms[counts][order], 0.0), dense_ms)
    return float((reached * np.diff(edges)).sum() / dense_ms)


def knee(accuracy: Float[np.ndarray, " n"], latency_ms: Float[np.ndarray, " n"]) -> int:
    """Return the index of the front's knee: the point farthest above the line between its ends.

    Both axes are scaled to the front's extent. Where no point is above the line, as with a front
    of two points, the most accurate one is the knee.

    >>> knee(np.array([0.5, 0.85, 0.9]), np.array([1.0, 2.0, 9.0]))
    1

    Args:
        accuracy: Fraction correct; points with a NaN do not count.
        latency_ms: Latency in ms.

    Raises:
        RunError: There is no point.
    """
    front = np.flatnonzero(pareto_mask(accuracy, latency_ms))
    if not len(front):
        raise RunError("a knee needs at least one evaluated candidate, got none; see the failures")
    gain = _scaled(accuracy[front]) - _scaled(latency_ms[front])
    # The ends are at 0; rounding must not put a point of the line above them.
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return int(front[best[np.argmax(accuracy[front[best]])]])


def _scaled(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    extent = values.max() - values.min()
    scaled: Float[np.ndarray, " n"] = (values - values.min()) / (extent if extent > 0 else 1.0)
    return scaled
