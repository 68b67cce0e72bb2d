"""What passes between Tune and the study: proposals as text, evaluations and failures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from autoprune.evaluation import Evaluates, Evaluation
from autoprune.execution.driver import Proposal, StudyDriver
from autoprune.strategy.space import Candidate
from autoprune.tasks.base import Score
from autoprune.tasks.racing import Bar

T = TypeVar("T")

#: What :meth:`Exchange.suggest` returns where there is nothing more to evaluate.
OVER = ""


@runtime_checkable
class Exchange(Protocol):
    """The study as Tune sees it."""

    def suggest(self, trial_id: str) -> str | None:
        """Return the next proposal, :data:`OVER`, or ``None`` where there is none now."""
        ...

    def finish(self, trial_id: str, evaluation: str) -> None:
        """Take the evaluation of a proposal."""
        ...

    def fail(self, trial_id: str, reason: str) -> None:
        """Take the failure of a proposal whose worker died too often."""
        ...


class DriverExchange:
    """Hands out what a driver proposes and records what comes back.

    Attributes:
        fault: An exception of the driver, which Tune would only have logged.
    """

    def __init__(self, driver: StudyDriver, evaluator: Evaluates) -> None:
        """Store parameters.

        Args:
            driver: Proposes candidates and stores evaluations.
            evaluator: Knows what a candidate that failed costs.
        """
        self.fault: Exception | None = None
        self._driver, self._evaluator = driver, evaluator
        self._open: dict[str, Proposal] = {}

    def suggest(self, trial_id: str) -> str | None:
        """Return the driver's next proposal for a trial of Tune's."""
        proposal = self._guarded(self._driver.propose)
        if proposal is None:
            return OVER if self._driver.stopped or self.fault is not None else None
        self._open[trial_id] = proposal
        return encoded(proposal)

    def finish(self, trial_id: str, evaluation: str) -> None:
        """Record an evaluation."""
        values = json.loads(evaluation)
        self._record(trial_id, lambda proposal: Evaluation.from_json(proposal.candidate, values))

    def fail(self, trial_id: str, reason: str) -> None:
        """Record a failure."""
        self._record(trial_id, lambda proposal: self._evaluator.failed(proposal.candidate, reason))

    def _record(self, trial_id: str, result: Callable[[Proposal], Evaluation]) -> None:
        proposal = self._open.pop(trial_id)
        self._guarded(lambda: self._driver.record(proposal.number, result(proposal)))

    def _guarded(self, call: Callable[[], T]) -> T | None:
        """Return what ``call`` returns; its exception ends the search and is raised after it."""
        if self.fault is not None:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - raised again when Tune has wound down
            self.fault = error
            return None


def encoded(proposal: Proposal) -> str:
    """Return a proposal as a worker reads it."""
    return json.dumps(
        {
            "ratios": proposal.candidate.ratios,
            "dropped": proposal.candidate.dropped,
            "rung": proposal.candidate.rung,
            "bar": [dataclasses.astuple(score) for score in proposal.bar],
        }
    )


def decoded(text: str) -> tuple[Candidate, Bar]:
    """Return candidate and bar of a proposal that :func:`encoded` wrote."""
    values = json.loads(text)
    candidate = Candidate(tuple(values["ratios"]), tuple(values["dropped"]), values["rung"])
    return candidate, tuple(Score(*score) for score in values["bar"])
