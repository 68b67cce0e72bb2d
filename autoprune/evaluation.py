"""From a candidate to its scores: the only place where a candidate network is built."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser
from autoprune.pruning.surgery import Surgeon
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate
from autoprune.tasks.base import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is known about one candidate once it was built and scored.

    Attributes:
        candidate: The candidate.
        status: ``"failed"`` when it could not be built or scored.
        loss: Mean cross-entropy on the search split in nats; NaN when failed.
        accuracy: Fraction right on the search split; NaN when failed.
        latency_ms: Predicted latency of one deployment batch.
        macs: Multiply-accumulates of one deployment batch.
        params: Parameter elements.
        seconds: Wall-clock time it took to build and score it.
        reason: ``"TypeName: message"`` of the failure, empty when complete.
    """

    candidate: Candidate
    status: Literal["complete", "failed"]
    loss: float = math.nan
    accuracy: float = math.nan
    latency_ms: float
    macs: int
    params: int
    seconds: float = 0.0
    reason: str = ""


@runtime_checkable
class Evaluates(Protocol):
    """What executes trials: an :class:`Evaluator`, or a stand-in for it."""

    def __call__(self, candidate: Candidate) -> Evaluation:
        """Return the scores of ``candidate``; never raises an ``Exception``."""
        ...

    def failed(self, candidate: Candidate, reason: str) -> Evaluation:
        """Return the evaluation of a candidate whose scores could not be computed."""
        ...


class Evaluator:
    """Builds and scores candidates of one network on one task.

    Everything that all candidates share (the order in which units go, what the realisation needs,
    the latency predictor) is prepared once; the object can be sent to worker processes.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        *,
        problem: Problem,
        scores: Mapping[str, Float[np.ndarray, " units"]],
        calibration_samples: int,
        realise: str = "statistics",
    ) -> None:
        """Prepare what all candidates share.

        Args:
            network: The traced network, every group of it verified.
            task: Where the data and the metric come from.
            problem: The search space, whose dimensions follow ``network.groups``, and the latency.
            scores: Importance of every unit of every group; the highest stay longest.
            calibration_samples: Training samples that candidates are realised with.
            realise: Name of the way a plan becomes a network, in
                :data:`autoprune.pruning.realiser.REALISERS`.

        Raises:
            UnknownNameError: There is no such way.
        """
        self.network = network
        self.task = task
        self.problem = problem
        self.order = {
            group.name: unit_order(scores[group.name], group.size) for group in network.groups
        }
        self._surgeon = Surgeon(network)
        self._realiser = build_realiser(realise, network, task.calibration(calibration_samples))

    def __call__(self, candidate: Candidate) -> Evaluation:
        """Return the scores of ``candidate``; a failure comes back as a failed evaluation."""
        started = time.perf_counter()
        try:
            score = self.task.evaluate(self.build(candidate), "search")
            reason = "" if math.isfinite(score.loss) else f"ValueError: the loss is {score.loss}"
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the trial's result
            score, reason = None, f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        if score is None or reason:
            return dataclasses.replace(self.failed(candidate, reason), seconds=seconds)
        return dataclasses.replace(
            self.failed(candidate, ""),
            status="complete",
            loss=float(score.loss),
            accuracy=float(score.accuracy),
            seconds=seconds,
        )

    def failed(self, candidate: Candidate, reason: str) -> Evaluation:
        """Return what is known of ``candidate`` without its scores: the costs, and the reason."""
        space, ops = self.problem.space, self.network.ops
        widths, keep = space.widths([candidate]), space.keep([candidate])
        return Evaluation(
            candidate=candidate,
            status="failed",
            latency_ms=float(self.problem.predict(widths, keep)[0]),
            macs=int(ops.macs(widths, keep)[0]),
            params=int(ops.params(widths, keep)[0]),
            reason=reason,
        )

    def build(self, candidate: Candidate) -> nn.Module:
        """Return the pruned network of ``candidate``.

        The candidate that removes nothing is the trained network as it is: it is the reference.
        """
        plan = self.plan(candidate)
        dense = candidate == self.problem.space.dense()
        return self._surgeon.cut(plan) if dense else self._realiser(plan)

    def plan(self, candidate: Candidate) -> PruningPlan:
        """Return which units narrower groups keep (the most important) and which blocks go."""
        widths = self.problem.space.widths([candidate])[0]
        keep = self.problem.space.keep([candidate])[0]
        kept = {
            group.name: tuple(sorted(int(unit) for unit in self.order[group.name][:width]))
            for group, width in zip(self.network.groups, widths, strict=True)
            if width < group.size
        }
        dropped = tuple(
            block.name for block, stays in zip(self.network.blocks, keep, strict=True) if not stays
        )
        return self._surgeon.complete(PruningPlan(kept=kept, dropped=dropped))


def unit_order(scores: Float[np.ndarray, " units"], size: int) -> Int[np.ndarray, " units"]:
    """Return unit indices from the most to the least important, equal scores by index.

    >>> unit_order(np.array([0.5, 2.0, 0.5]), 3).tolist()
    [1, 0, 2]

    Raises:
        ValueError: There is not one finite score per unit.
    """
    if scores.shape != (size,) or not np.isfinite(scores).all():
        raise ValueError(f"expected {size} finite scores, got {scores!r}")
    return np.argsort(-scores, kind="stable")
