"""An evaluator in closed form, for tests of samplers, drivers and executors."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.evaluation import Evaluation
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate, Dimension, SearchSpace
from autoprune.tasks.base import Score
from autoprune.tasks.racing import Bar, clearly_worse

#: After how many samples it pretends to have scored.
RUNGS = (256, 1000)


class AnalyticEvaluator:
    """Scores candidates by a formula: the loss is a weighted sum of squared ratios.

    Every rung of training takes a part of it away.

    Attributes:
        calls: Keys of the candidates it was called with, in order.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seconds: float = 0.0,
        stderr: float = 10.0,
        failing: Collection[str] = (),
        deadly: Collection[str] = (),
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seconds: How long one evaluation sleeps.
            stderr: Standard error of every loss; unless it is small no candidate is clearly worse
                than another.
            failing: Keys of candidates whose evaluation fails.
            deadly: Keys of candidates that end the process they are evaluated in.
        """
        self.problem = problem
        self.seconds = seconds
        self.stderr = stderr
        self.failing = frozenset(failing)
        self.deadly = frozenset(deadly)
        self.calls: list[str] = []

    def __call__(self, candidate: Candidate, bar: Bar = ()) -> Evaluation:
        """Return the scores of ``candidate``, after one rung where that is clearly worse.

        Args:
            candidate: The candidate.
            bar: What another network scored on the first samples.
        """
        self.calls.append(candidate.key)
        if candidate.key in self.deadly:
            os._exit(1)
        time.sleep(self.seconds)
        if candidate.key in self.failing:
            return self.failed(candidate, "ValueError: told to fail")
        weights = np.linspace(1.0, 2.0, len(candidate.ratios))
        loss = float(weights @ np.square(candidate.ratios)) + 0.1 * sum(candidate.dropped)
        loss /= 1 + candidate.rung
        rungs = tuple(Score(loss, math.exp(-loss), samples, self.stderr) for samples in RUNGS)
        if clearly_worse(rungs[0], bar):
            rungs = rungs[:1]
        return self._evaluation(candidate, loss=loss, reason="", rungs=rungs)

    def failed(self, candidate: Candidate, reason: str) -> Evaluation:
        """Return a failed evaluation of ``candidate``."""
        return self._evaluation(candidate, loss=math.nan, reason=reason)

    def _evaluation(
        self, candidate: Candidate, *, loss: float, reason: str, rungs: tuple[Score, ...] = ()
    ) -> Evaluation:
        widths, keep = self.problem.space.widths([candidate]), self.problem.space.keep([candidate])
        kept = int(widths.sum())
        return Evaluation(
            candidate=candidate,
            status="failed" if reason else "complete" if len(rungs) == 2 else "screened",
            loss=loss,
            accuracy=math.exp(-loss),
            samples=rungs[-1].samples if rungs else 0,
            loss_stderr=self.stderr if rungs else math.nan,
            rungs=rungs,
            latency_ms=float(self.problem.latency(widths, keep)[0]),
            macs=kept**2,
            params=kept,
            costs=self.problem.extra_costs(candidate),
            seconds=self.seconds,
            reason=reason,
        )


class LinearLatency:
    """One microsecond per unit of every group, and one millisecond per kept block."""

    def __call__(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return milliseconds per candidate."""
        total: Float[np.ndarray, " n"] = widths.sum(axis=1) / 1000.0 + keep.sum(axis=1)
        return total


def analytic_problem(
    *, groups: int = 3, size: int = 1000, budget_ms: float | None = None
) -> Problem:
    """Return a problem of ``groups`` equal groups and one removable block."""
    dimensions = tuple(Dimension(f"group{i}", size, size // 10) for i in range(groups))
    return Problem(SearchSpace(dimensions, ("block",), (True,)), LinearLatency(), budget_ms)
