"""What the next candidate is compared with, kept up to date record by record."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from autoprune.evaluation import Evaluation
from autoprune.strategy.goals import LATENCY
from autoprune.strategy.pareto import hypervolume


@dataclasses.dataclass(frozen=True)
class _Step:
    """A network that no cheaper one equals.

    Attributes:
        cost: Its latency, or what else is minimised.
        height: Its accuracy, or its negative loss.
        evaluation: Its scores.
    """

    cost: float
    height: float
    evaluation: Evaluation


@runtime_checkable
class Standing(Protocol):
    """The networks that are higher than all that cost no more.

    ``costs`` are those of the goals, in their order.
    """

    def add(self, evaluation: Evaluation, height: float) -> None:
        """Add a network, which lowers none."""

    def with_(self, evaluation: Evaluation, height: float) -> Standing:
        """Return the same with a network more."""
        ...

    def at(self, *costs: float) -> Evaluation | None:
        """Return the highest network that costs no more; ``None`` where there is none."""

    def area(self, *ends: float) -> float:
        """Return the integral, over costs from 0 to the ends, of the height within them."""
        ...


def standing(costs: Sequence[str]) -> Standing:
    """Return an empty standing by the costs of those names."""
    return Staircase(costs[0]) if len(costs) == 1 else Terraces(costs)


class Staircase:
    """A standing by one cost; adding a network takes O(log n).

    Of networks that are equally high the cheapest stays, of equally cheap ones the first.
    """

    def __init__(self, cost: str = LATENCY) -> None:
        """Make an empty one.

        Args:
            cost: Name of what is minimised.
        """
        self.cost = cost
        self._steps: list[_Step] = []

    def add(self, evaluation: Evaluation, height: float) -> None:
        """Add a network, which lowers none."""
        cost = evaluation.cost(self.cost)
        place = self._place(cost)
        if place and self._steps[place - 1].height >= height:
            return
        start = place
        if place and self._steps[place - 1].cost == cost:
            start -= 1
        end = place
        while end < len(self._steps) and self._steps[end].height <= height:
            end += 1
        self._steps[start:end] = [_Step(cost, height, evaluation)]

    def with_(self, evaluation: Evaluation, height: float) -> Staircase:
        """Return the staircase with a network more."""
        other = Staircase(self.cost)
        other._steps = list(self._steps)
        other.add(evaluation, height)
        return other

    def at(self, *costs: float) -> Evaluation | None:
        """Return the highest network that costs no more; ``None`` where there is none."""
        place = self._place(*costs)
        return self._steps[place - 1].evaluation if place else None

    def area(self, *ends: float) -> float:
        """Return the integral of the height over costs from 0 to the end."""
        (end,) = ends
        within = [step for step in self._steps if step.cost < end]
        edges = [*(max(step.cost, 0.0) for step in within), end]
        return math.fsum(
            step.height * (right - left)
            for step, left, right in zip(within, edges, edges[1:], strict=False)
        )

    def _place(self, cost: float) -> int:
        """Return how many steps cost no more."""
        return bisect.bisect_right(self._steps, cost, key=lambda step: step.cost)


class Terraces:
    """A standing by several costs; adding a network takes O(n).

    Of networks that are equal in everything the first stays.
    """

    def __init__(self, costs: Sequence[str]) -> None:
        """Make an empty one.

        Args:
            costs: Names of what is minimised.
        """
        self.costs = tuple(costs)
        self._networks: list[tuple[tuple[float, ...], float, Evaluation]] = []

    def add(self, evaluation: Evaluation, height: float) -> None:
        """Add a network, which lowers none."""
        mine = tuple(evaluation.cost(name) for name in self.costs)
        if any(high >= height and _no_more(costs, mine) for costs, high, _ in self._networks):
            return
        self._networks = [
            network
            for network in self._networks
            if not (network[1] <= height and _no_more(mine, network[0]))
        ]
        self._networks.append((mine, height, evaluation))

    def with_(self, evaluation: Evaluation, height: float) -> Terraces:
        """Return the same with a network more."""
        other = Terraces(self.costs)
        other._networks = list(self._networks)
        other.add(evaluation, height)
        return other

    def at(self, *costs: float) -> Evaluation | None:
        """Return the highest network that costs no more; ``None`` where there is none."""
        within = [network for network in self._networks if _no_more(network[0], costs)]
        return max(within, key=lambda network: network[1])[2] if within else None

    def area(self, *ends: float) -> float:
        """Return the integral, over costs from 0 to the ends, of the height within them."""
        columns = np.array([network[0] for network in self._networks], float)
        return math.prod(ends) * hypervolume(
            np.array([network[1] for network in self._networks], float),
            columns.reshape(len(self._networks), len(ends)),
            dense_ms=np.array(ends),
        )


def _no_more(costs: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether every cost is at most the other's."""
    return all(mine <= theirs for mine, theirs in zip(costs, others, strict=True))
