"""Which units to remove, one after another, when removing them together costs a quadratic form."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def removal_order(
    cost: Float[np.ndarray, "units units"],
) -> Float[np.ndarray, " units"]:
    r"""Return for every unit when it goes, 0 for the first, if each step costs as little as can be.

    Removing the set S costs :math:`1_S^T C 1_S`; nothing makes up for it. Each step takes the unit
    that leaves this smallest; it may even fall, as errors of units cancel. Units that cost nothing
    whatever else goes are first, all with 0.

    >>> removal_order(np.array([[1.0, 0.0, -0.9], [0.0, 0.5, 0.0], [-0.9, 0.0, 1.2]]))
    array([1., 0., 2.])

    Args:
        cost: Symmetric; NaN everywhere comes back where a number is not finite.
    """
    if not np.isfinite(cost).all():
        return np.full(len(cost), np.nan)
    free = ~cost.any(axis=1)
    order = np.zeros(len(cost))
    step = np.where(free, np.inf, np.diagonal(cost))
    for turn in range(int(free.sum()), len(cost)):
        unit = int(np.argmin(step))
        order[unit] = turn
        step += 2 * cost[unit]
        step[unit] = np.inf
    return order
