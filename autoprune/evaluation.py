"""From a candidate to its scores: the only place where a candidate network is built."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.merge import Calibrated
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser
from autoprune.pruning.surgery import Surgeon
from autoprune.strategy.goals import LATENCY
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate, SearchSpace
from autoprune.tasks.base import SampledTask, Score, Task, needs_samples
from autoprune.tasks.calibrated import race_calibrated
from autoprune.tasks.divergence import Divergence
from autoprune.tasks.numerics import Numerics
from autoprune.tasks.racing import Bar, race

#: What samplers minimise beside latency: mean loss, the loss at the temperature that suits a
#: network, or mean divergence from the unpruned network.
Metric = Literal["loss", "calibrated", "kl"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is known about one candidate once it was built and scored.

    Attributes:
        candidate: The candidate.
        status: ``"screened"`` when scoring stopped early because it was clearly worse than another
            network as fast, ``"failed"`` when it could not be built or scored.
        loss: The metric on the search split in nats, mean loss (at the network's temperature or as
            it is) or mean divergence from the unpruned network; NaN when failed.
        accuracy: Fraction right on the search split; NaN when failed.
        samples: Samples that both were measured on: the whole split's, fewer when screened.
        loss_stderr: Standard error of ``loss``; NaN where it is not known.
        rungs: Scores on the first samples of the split, the last on all samples it was scored on;
            empty for a task that does not score sample by sample.
        latency_ms: Predicted latency of one deployment batch.
        macs: Multiply-accumulates of one deployment batch.
        params: Parameter elements.
        costs: What else the search's objectives and limits name, by name.
        seconds: Wall-clock time it took to build and score it.
        reason: ``"TypeName: message"`` of the failure, empty when complete.
        cached: The scores were known from another run.
    """

    candidate: Candidate
    status: Literal["complete", "screened", "failed"]
    loss: float = math.nan
    accuracy: float = math.nan
    samples: int = 0
    loss_stderr: float = math.nan
    rungs: tuple[Score, ...] = ()
    latency_ms: float
    macs: int
    params: int
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""
    cached: bool = False

    def cost(self, name: str) -> float:
        """Return what is called so in :class:`~autoprune.strategy.goals.Goals`."""
        known = {LATENCY: self.latency_ms, "macs": self.macs, "params": self.params}
        return float(known[name] if name in known else self.costs[name])

    def to_json(self) -> dict[str, Any]:
        """Return everything but the candidate as plain values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["candidate"]
        rungs = [dataclasses.astuple(rung) for rung in self.rungs]
        return values | {"rungs": rungs, "costs": dict(self.costs)}

    @classmethod
    def from_json(cls, candidate: Candidate, values: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation of ``candidate`` that :meth:`to_json` made plain."""
        rungs = tuple(Score(*rung) for rung in values["rungs"])
        return cls(candidate=candidate, **{**values, "rungs": rungs})


@runtime_checkable
class Evaluates(Protocol):
    """What executes trials: an :class:`Evaluator`, or a stand-in for it."""

    def __call__(self, candidate: Candidate, bar: Bar = ()) -> Evaluation:
        """Return the scores of ``candidate``; never raises an ``Exception``.

        Args:
            candidate: The candidate.
            bar: What another network scored on the first samples; scoring may end where the
                candidate is clearly worse.
        """
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
        calibrated: Calibrated | None = None,
        metric: Metric = "loss",
        numerics: Numerics | None = None,
    ) -> None:
        """Prepare what all candidates share.

        Args:
            network: The traced network, every group of it verified.
            task: Where the data and the metric come from.
            problem: The search space, made of ``network.groups``, and the latency.
            scores: Importance of every unit of every group; the highest stay longest.
            calibration_samples: Training samples that candidates are realised with.
            realise: Name of the way a plan becomes a network, in
                :data:`autoprune.pruning.realiser.REALISERS`.
            calibrated: What the calibration samples told about the network, where that is known
                already.
            metric: What is minimised.
            numerics: How networks run while they are scored on the search split; ``None`` is as
                they are.

        Raises:
            UnknownNameError: There is no such way.
            TaskError: The metric needs a task that scores sample by sample.
        """
        self.network = network
        self.task = task
        self.problem = problem
        self.numerics = numerics or Numerics()
        self.plan = Planner(network, problem.space, scores)
        self._realiser = build_realiser(
            realise, network, task.calibration(calibration_samples), calibrated=calibrated
        )
        self.metric = metric
        if metric == "calibrated":
            needs_samples(task, "the metric 'calibrated'")
        self._divergence = None
        if metric == "kl":
            dense = self.build(problem.space.dense())
            with self.numerics.applied(dense):
                self._divergence = Divergence(needs_samples(task, "the metric 'kl'"), dense)

    def __call__(self, candidate: Candidate, bar: Bar = ()) -> Evaluation:
        """Return the scores of ``candidate``; a failure comes back as a failed evaluation.

        Args:
            candidate: The candidate.
            bar: What another network scored on the first samples. A task that scores sample by
                sample ends where the candidate is clearly worse; others never do.
        """
        started = time.perf_counter()
        try:
            evaluation = self.scored(candidate, self._scores(self.build(candidate), bar))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the trial's result
            evaluation = self.failed(candidate, f"{type(error).__name__}: {error}")
        return dataclasses.replace(evaluation, seconds=time.perf_counter() - started)

    def _scores(self, model: nn.Module, bar: Bar) -> tuple[Score, ...]:
        """Return the scores of a network on growing parts of the search split."""
        with self.numerics.applied(model):
            if self._divergence is not None:
                return self._divergence.race(model, bar)
            if isinstance(self.task, SampledTask):
                raced = race_calibrated if self.metric == "calibrated" else race
                return raced(self.task, model, bar)
            return (self.task.evaluate(model, "search"),)

    def scored(self, candidate: Candidate, scores: tuple[Score, ...]) -> Evaluation:
        """Return the evaluation of ``candidate`` that follows from its scores.

        Args:
            candidate: The candidate.
            scores: On growing parts of the search split; the last counts.
        """
        task, last = self.task, scores[-1]
        if not math.isfinite(last.loss):
            return self.failed(candidate, f"ValueError: the loss is {last.loss}")
        whole = task.samples("search") if isinstance(task, SampledTask) else None
        screened = whole is not None and last.samples < whole
        return dataclasses.replace(
            self.failed(candidate, ""),
            status="screened" if screened else "complete",
            loss=float(last.loss),
            accuracy=float(last.accuracy),
            samples=last.samples,
            loss_stderr=last.loss_stderr,
            rungs=() if whole is None else scores,
        )

    def failed(self, candidate: Candidate, reason: str) -> Evaluation:
        """Return what is known of ``candidate`` without its scores: the costs, and the reason."""
        space, ops = self.problem.space, self.network.ops
        dimensions, keep = space.widths([candidate]), space.keep([candidate])
        widths = space.network_widths(dimensions)
        return Evaluation(
            candidate=candidate,
            status="failed",
            latency_ms=float(self.problem.latency(dimensions, keep)[0]),
            macs=int(ops.macs(widths, keep)[0]),
            params=int(ops.params(widths, keep)[0]),
            costs=self.problem.extra_costs(candidate),
            reason=reason,
        )

    def build(self, candidate: Candidate) -> nn.Module:
        """Return the pruned network of ``candidate``.

        The candidate that removes nothing is the trained network as it is: it is the reference.
        """
        plan = self.plan(candidate)
        dense = candidate == self.problem.space.dense()
        return Surgeon(self.network).cut(plan) if dense else self._realiser(plan)


class Planner:
    """Turns candidates of one network into plans: the most important units stay.

    Attributes:
        order: For each group its units, the most important first.
    """

    def __init__(
        self,
        network: Network,
        space: SearchSpace,
        scores: Mapping[str, Float[np.ndarray, " units"]],
    ) -> None:
        """Order the units.

        Args:
            network: The traced network.
            space: Made of its groups.
            scores: Importance of every unit of every group.
        """
        self.network, self.space = network, space
        self.order = {
            group.name: unit_order(scores[group.name], group.size) for group in network.groups
        }
        self._surgeon = Surgeon(network)

    def __call__(self, candidate: Candidate) -> PruningPlan:
        """Return which units narrower groups keep and which blocks go."""
        space = self.space
        widths = space.network_widths(space.widths([candidate]))[0]
        keep = space.keep([candidate])[0]
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
