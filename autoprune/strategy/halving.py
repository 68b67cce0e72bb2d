"""Successive halving: which networks of a rung are worth a longer training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from autoprune.strategy.pareto import pareto_mask

#: One in so many networks of a rung goes on to the next [Li2020asha].
FACTOR = 4


def promising(
    loss: Float[np.ndarray, " n"], costs: Float[np.ndarray, "n costs"], *, count: int
) -> Int[np.ndarray, " m"]:
    """Return the most promising networks, the best first.

    Networks are ranked as NSGA-II ranks them [Deb2002nsga2]: those that nobody beats, then those
    that only the former beat, and so on; of one such layer the ends come first, the one of least
    loss before all, then those that stand most alone. A single number, such as the loss, would
    leave nothing but slow networks.

    Args:
        loss: Finite.
        costs: Latency and what else is minimised.
        count: How many.

    References:
        [Li2020asha] L. Li et al. A System for Massively Parallel Hyperparameter Tuning. MLSys,
        2020. [Deb2002nsga2] K. Deb et al. A Fast and Elitist Multiobjective Genetic Algorithm:
        NSGA-II. IEEE Transactions on Evolutionary Computation 6(2), 2002.
    """
    points = np.column_stack([loss, costs])
    left, chosen = np.arange(len(loss)), np.zeros(0, np.int64)
    while len(left) and len(chosen) < count:
        on = pareto_mask(-loss[left], costs[left])
        layer, left = left[on], left[~on]
        alone = _distances(points[layer])
        chosen = np.append(chosen, layer[np.lexsort((layer, loss[layer], -alone))])
    return chosen[:count]


def _distances(points: Float[np.ndarray, "n axes"]) -> Float[np.ndarray, " n"]:
    """Return the crowding distance of each point of a layer; that of an end is infinite."""
    distances = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        extent = values[order[-1]] - values[order[0]]
        distances[order[[0, -1]]] = np.inf
        if extent > 0:
            distances[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / extent
    return distances
