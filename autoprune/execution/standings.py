"""What the next candidate is compared with, kept up to date record by record."""

from __future__ import annotations

import bisect
import dataclasses
import math

from autoprune.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class _Step:
    """A network that no faster one equals.

    Attributes:
        latency_ms: Its latency.
        height: Its accuracy, or its negative loss.
        evaluation: Its scores.
    """

    latency_ms: float
    height: float
    evaluation: Evaluation


class Staircase:
    """The networks that are higher than all that are as fast; adding one takes O(log n).

    Of networks that are equally high the fastest stays, of equally fast ones the first.
    """

    def __init__(self) -> None:
        """Make an empty one."""
        self._steps: list[_Step] = []

    def add(self, evaluation: Evaluation, height: float) -> None:
        """Add a network, which lowers none."""
        place = self._place(evaluation.latency_ms)
        if place and self._steps[place - 1].height >= height:
            return
        start = place
        if place and self._steps[place - 1].latency_ms == evaluation.latency_ms:
            start -= 1
        end = place
        while end < len(self._steps) and self._steps[end].height <= height:
            end += 1
        self._steps[start:end] = [_Step(evaluation.latency_ms, height, evaluation)]

    def with_(self, evaluation: Evaluation, height: float) -> Staircase:
        """Return the staircase with a network more."""
        other = Staircase()
        other._steps = list(self._steps)
        other.add(evaluation, height)
        return other

    def at(self, latency_ms: float) -> Evaluation | None:
        """Return the highest network that is as fast; ``None`` where there is none."""
        place = self._place(latency_ms)
        return self._steps[place - 1].evaluation if place else None

    def area(self, end_ms: float) -> float:
        """Return the integral of the height over latencies from 0 to ``end_ms``."""
        within = [step for step in self._steps if step.latency_ms < end_ms]
        edges = [*(max(step.latency_ms, 0.0) for step in within), end_ms]
        return math.fsum(
            step.height * (right - left)
            for step, left, right in zip(within, edges, edges[1:], strict=False)
        )

    def _place(self, latency_ms: float) -> int:
        """Return how many steps are as fast."""
        return bisect.bisect_right(self._steps, latency_ms, key=lambda step: step.latency_ms)
