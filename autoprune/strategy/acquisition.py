"""What a candidate is expected to add to the front, exactly: its latency is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

#: How much the budgets up to each latency matter, all together.
Measure = Callable[[Float[np.ndarray, " t"]], Float[np.ndarray, " t"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Front:
    """The least loss reached within each latency budget, a falling staircase.

    Attributes:
        edges_ms: Where steps begin, ascending, and where the last one ends.
        best: The least loss from each edge to the next.
    """

    edges_ms: Float[np.ndarray, " edges"]
    best: Float[np.ndarray, " steps"]

    @classmethod
    def of(
        cls,
        loss: Float[np.ndarray, " n"],
        latency_ms: Float[np.ndarray, " n"],
        *,
        fastest_ms: float,
        dense_ms: float,
        reference: float,
    ) -> Front:
        """Return the front of evaluated candidates.

        Args:
            loss: The loss of each, or whatever is predicted of it.
            latency_ms: The latency of each.
            fastest_ms: The lowest budget that counts.
            dense_ms: The highest.
            reference: The loss within budgets that nothing meets; worse losses count as this.
        """
        counts = (loss < reference) & (latency_ms < dense_ms)
        order = np.flatnonzero(counts)[np.argsort(latency_ms[counts], kind="stable")]
        best = np.minimum.accumulate(np.append(reference, loss[order]))
        edges = np.concatenate([[fastest_ms], latency_ms[order], [max(dense_ms, fastest_ms)]])
        return cls(np.maximum(edges, fastest_ms), best)

    def within(self, budget_ms: float) -> float:
        """Return the least loss reached within a budget."""
        step = int(np.searchsorted(self.edges_ms[:-1], budget_ms, side="right")) - 1
        return float(self.best[max(step, 0)])


def expected_improvement(
    best: Float[np.ndarray, " *shape"] | float,
    mean: Float[np.ndarray, " *shape"],
    std: Float[np.ndarray, " *shape"],
) -> Float[np.ndarray, " *shape"]:
    """Return the expected amount by which normal variables are below ``best``.

    >>> expected_improvement(0.0, np.array([0.0]), np.array([1.0])).round(4).tolist()
    [0.3989]

    Args:
        best: What is to be improved on.
        mean: Means.
        std: Standard deviations, above 0.
    """
    z = (best - mean) / std
    density = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    # Far below, the two terms cancel but for rounding.
    gain: Float[np.ndarray, " *shape"] = np.maximum(std * (z * ndtr(z) + density), 0.0)
    return gain


def hypervolume_improvement(
    front: Front,
    mean: Float[np.ndarray, " n"],
    std: Float[np.ndarray, " n"],
    latency_ms: Float[np.ndarray, " n"],
    *,
    measure: Measure | None = None,
) -> Float[np.ndarray, " n"]:
    """Return the expected growth of the area under the front, in loss * ms.

    A candidate of latency T improves on the front at all budgets from T on; at each by the
    expected improvement on the step there. Because T is known, the sum over steps is exact.

    Args:
        front: What was reached.
        mean: Predicted loss of each candidate.
        std: Its standard deviation, above 0.
        latency_ms: Its latency.
        measure: Weighs the budgets: its difference between two latencies stands in place of
            theirs. ``None`` weighs every millisecond the same.
    """
    begin = np.maximum(front.edges_ms[:-1], latency_ms[:, None])
    end = np.maximum(front.edges_ms[1:], begin)
    width = end - begin
    if measure is not None:
        width = (measure(end.ravel()) - measure(begin.ravel())).reshape(begin.shape)
    shape = begin.shape
    gain = expected_improvement(
        np.broadcast_to(front.best, shape),
        np.broadcast_to(mean[:, None], shape),
        np.broadcast_to(std[:, None], shape),
    )
    total: Float[np.ndarray, " n"] = (width * gain).sum(axis=1)
    return total
