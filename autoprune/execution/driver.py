"""The loop around the study: asks for candidates, takes evaluations, knows when to stop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autoprune.evaluation import Evaluation
from autoprune.strategy.pareto import hypervolume
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate, SearchSpace
from autoprune.tasks.base import Score
from autoprune.tasks.racing import Bar

#: Reason of a trial whose evaluation never ended because the run was stopped.
INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a search ends.

    Attributes:
        trials: Evaluations in total, those of an earlier session included.
        seconds: No evaluation starts after this many seconds of this session; ``None``: no limit.
        repeats: The search ends when this many proposals in a row are candidates already known.
        failures: The search ends when this many evaluations in a row fail.
    """

    trials: int
    seconds: float | None = None
    repeats: int = 16
    failures: int = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One trial of the study that has ended.

    Attributes:
        number: The trial's number.
        evaluation: Its candidate and scores.
        dense: It is the unpruned reference, evaluated before the search.
        duplicate_of: Number of the trial with the same candidate whose result was copied.
        hypervolume: Hypervolume after this trial, in [0, 1].
    """

    number: int
    evaluation: Evaluation
    dense: bool = False
    duplicate_of: int | None = None
    hypervolume: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the trial gave a network that was scored on all samples."""
        return self.evaluation.status == "complete"

    @property
    def counted(self) -> bool:
        """Whether the trial used up one of the evaluations that were asked for."""
        interrupted = self.evaluation.reason == INTERRUPTED
        return not (self.dense or interrupted or self.duplicate_of is not None)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A candidate that waits for its evaluation.

    Attributes:
        number: Number of its trial in the study.
        candidate: The candidate, inside the budget and on the width grid.
        bar: What the best network that is as fast scored on the first samples; empty where there is
            none, or where networks are not raced.
    """

    number: int
    candidate: Candidate
    bar: Bar = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the search stands after one evaluation.

    Attributes:
        record: The evaluation that has just ended.
        done: Evaluations that have ended, those of an earlier session included.
        total: Evaluations that were asked for.
        fresh: Evaluations that have ended in this session.
        seconds: Time since this session's search began.
        best: The best network under the budget so far.
    """

    record: Record
    done: int
    total: int
    fresh: int
    seconds: float
    best: Record | None


#: Hears of every evaluation as it is recorded.
Listener = Callable[[Progress], None]


class StudyDriver:
    """Stands between the study and whatever evaluates candidates.

    The study is the truth: everything that is known of a finished trial is in it before the next
    is proposed, and a driver made on an old study continues it. Nothing here is thread-safe.

    Attributes:
        stopped: Why no more candidates are proposed; empty while the search goes on.
    """

    def __init__(
        self,
        study: optuna.Study,
        problem: Problem,
        *,
        limits: Limits,
        listeners: Sequence[Listener] = (),
        racing: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take up the study where it stands.

        Args:
            study: Two directions, minimise loss and minimise latency in ms; no trial running.
            problem: The search space and the latency of its candidates.
            limits: When to stop.
            listeners: Called after every evaluation.
            racing: Whether evaluations may end early where a network as fast is clearly better.
            clock: Returns seconds; for tests.
        """
        self.study = study
        self.problem = problem
        self.limits = limits
        self.listeners = tuple(listeners)
        self.racing = racing
        self.stopped = ""
        self.records = read_records(study, problem.space)
        self._clock = clock
        self._began = clock()
        self._distributions = problem.space.distributions()
        self._known = {
            record.evaluation.candidate.key: record
            for record in self.records
            if record.evaluation.status != "failed"
        }
        self._pending: dict[int, tuple[Trial, Candidate]] = {}
        self._copies: dict[str, list[Trial]] = {}
        self._done = sum(record.counted for record in self.records)
        self._fresh = 0
        self._failures_in_a_row = 0

    @property
    def dense(self) -> Record | None:
        """The unpruned network's record, ``None`` before it was evaluated."""
        return next((record for record in self.records if record.dense), None)

    def record_dense(self, evaluation: Evaluation) -> Record:
        """Store the unpruned network as a trial that no sampler proposed, and return its record."""
        params = self.problem.space.params(evaluation.candidate)
        attributes = self._attributes(evaluation) | {"dense": True}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                params=params,
                distributions=self._distributions,
                values=[evaluation.loss, evaluation.latency_ms],
                user_attrs=attributes,
            )
        )
        record = Record(
            number=len(self.study.get_trials(deepcopy=False)) - 1,
            evaluation=evaluation,
            dense=True,
            hypervolume=float(attributes["hypervolume"]),
        )
        self._keep(record)
        return record

    def propose(self) -> Proposal | None:
        """Return the next candidate to evaluate, ``None`` when the search is over.

        A proposal that is already known becomes a trial with the known result, at no cost, and the
        sampler is asked again.
        """
        repeats = 0
        while not self._over():
            trial = self.study.ask(self._distributions)
            space = self.problem.space
            candidate = space.snap(space.candidate(trial.params))
            if not self._is_known(candidate):
                self._pending[trial.number] = (trial, candidate)
                self._copies[candidate.key] = []
                return Proposal(trial.number, candidate, self._bar(candidate))
            self._copy(trial, candidate)
            repeats += 1
            if repeats >= self.limits.repeats:
                self.stop(
                    f"the last {repeats} candidates were already known; "
                    "the sampler finds nothing new in this search space"
                )
        return None

    def record(self, number: int, evaluation: Evaluation) -> Record:
        """Store the evaluation of a proposal and return its record.

        Args:
            number: The proposal's trial number.
            evaluation: What came out, complete or failed.
        """
        trial, candidate = self._pending.pop(number)
        record = self._tell(trial, evaluation)
        self._done += 1
        self._fresh += 1
        for copy in self._copies.pop(candidate.key):
            self._tell(copy, evaluation, duplicate_of=number)
        failed = evaluation.status == "failed"
        self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if self._failures_in_a_row >= self.limits.failures:
            self.stop(f"{self._failures_in_a_row} trials in a row failed: {evaluation.reason}")
        progress = Progress(
            record=record,
            done=self._done,
            total=self.limits.trials,
            fresh=self._fresh,
            seconds=self._clock() - self._began,
            best=best_record(self.records, self.problem.budget_ms),
        )
        for listener in self.listeners:
            listener(progress)
        return record

    def stop(self, reason: str) -> None:
        """Propose nothing more; the first reason stays."""
        self.stopped = self.stopped or reason

    def abandon(self) -> None:
        """Mark every proposal that waits for its evaluation as interrupted."""
        self._pending.clear()
        self._copies.clear()
        close_open_trials(self.study)

    def _over(self) -> bool:
        started = self._done + len(self._pending)
        if started >= self.limits.trials:
            self.stop(f"all {self.limits.trials} trials are done")
        seconds = self.limits.seconds
        if seconds is not None and self._clock() - self._began >= seconds:
            self.stop(f"the time limit of {seconds:g} s is reached")
        return bool(self.stopped)

    def _bar(self, candidate: Candidate) -> Bar:
        """Return the scores of the network of least loss among those that are as fast."""
        if not self.racing:
            return ()
        latency_ms = self.problem.latency_ms([candidate])[0]
        rivals = [
            record.evaluation
            for record in self.records
            if record.complete and record.evaluation.latency_ms <= latency_ms
        ]
        return min(rivals, key=lambda rival: rival.loss).rungs if rivals else ()

    def _is_known(self, candidate: Candidate) -> bool:
        return candidate.key in self._known or candidate.key in self._copies

    def _copy(self, trial: Trial, candidate: Candidate) -> None:
        """Give ``trial`` the known result of its candidate, now or when it has come."""
        known = self._known.get(candidate.key)
        if known is None:
            self._copies[candidate.key].append(trial)
        else:
            self._tell(trial, known.evaluation, duplicate_of=known.number)

    def _tell(
        self, trial: Trial, evaluation: Evaluation, *, duplicate_of: int | None = None
    ) -> Record:
        attributes = self._attributes(evaluation)
        if duplicate_of is not None:
            attributes |= {"duplicate_of": duplicate_of, "seconds": 0.0}
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        if evaluation.status != "failed":
            self.study.tell(trial, [evaluation.loss, evaluation.latency_ms])
        else:
            self.study.tell(trial, state=TrialState.FAIL)
        record = Record(
            number=trial.number,
            evaluation=dataclasses.replace(evaluation, seconds=float(attributes["seconds"])),
            duplicate_of=duplicate_of,
            hypervolume=float(attributes["hypervolume"]),
        )
        self._keep(record)
        return record

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if record.evaluation.status != "failed":
            self._known.setdefault(record.evaluation.candidate.key, record)

    def _attributes(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return what the study stores beside the two values; :func:`read_records` reads it."""
        complete = [r.evaluation for r in self.records if r.complete]
        if evaluation.status == "complete":
            complete.append(evaluation)
        volume = hypervolume(
            np.array([e.accuracy for e in complete]),
            np.array([e.latency_ms for e in complete]),
            dense_ms=self.problem.dense_ms,
        )
        attributes: dict[str, Any] = {
            "key": evaluation.candidate.key,
            "latency_ms": evaluation.latency_ms,
            "macs": evaluation.macs,
            "params": evaluation.params,
            "seconds": evaluation.seconds,
            "hypervolume": volume,
        }
        return attributes | _score_attributes(evaluation)


def _score_attributes(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the study stores of the scores; what is not known is left out."""
    if evaluation.status == "failed":
        return {"reason": evaluation.reason}
    attributes: dict[str, Any] = {"accuracy": evaluation.accuracy, "samples": evaluation.samples}
    if math.isfinite(evaluation.loss_stderr):
        attributes["loss_stderr"] = evaluation.loss_stderr
    if evaluation.rungs:
        attributes["rungs"] = evaluation.to_json()["rungs"]
    if evaluation.status == "screened":
        attributes["screened"] = True
    if evaluation.cached:
        attributes["cached"] = True
    return attributes


def close_open_trials(study: optuna.Study) -> None:
    """Mark trials that a stopped run left open as failed; their reason reads "interrupted"."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        study.tell(trial.number, state=TrialState.FAIL)


def read_records(study: optuna.Study, space: SearchSpace) -> list[Record]:
    """Return every trial of the study that has ended, in the order they ended."""
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    ended.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete))
    return [_record(trial, space) for trial in ended]


def best_record(records: Iterable[Record], budget_ms: float | None) -> Record | None:
    """Return the most accurate record within the budget, ``None`` where none is.

    Of equal accuracy the lower loss wins, then the lower latency, then the earlier trial.
    """
    within = [
        record
        for record in records
        if record.complete and (budget_ms is None or record.evaluation.latency_ms <= budget_ms)
    ]
    return min(within, key=_rank, default=None)


def _rank(record: Record) -> tuple[float, float, float, int]:
    scores = record.evaluation
    return -scores.accuracy, scores.loss, scores.latency_ms, record.number


def _record(trial: FrozenTrial, space: SearchSpace) -> Record:
    stored = trial.user_attrs
    failed = trial.state != TrialState.COMPLETE
    loss, latency_ms = (math.nan, stored.get("latency_ms", math.nan)) if failed else trial.values
    evaluation = Evaluation(
        candidate=space.snap(space.candidate(trial.params)),
        status="failed" if failed else "screened" if stored.get("screened") else "complete",
        loss=loss,
        accuracy=math.nan if failed else stored["accuracy"],
        samples=stored.get("samples", 0),
        loss_stderr=stored.get("loss_stderr", math.nan),
        rungs=tuple(Score(*rung) for rung in stored.get("rungs", ())),
        latency_ms=latency_ms,
        macs=stored.get("macs", 0),
        params=stored.get("params", 0),
        seconds=stored.get("seconds", 0.0),
        reason=stored.get("reason", INTERRUPTED) if failed else "",
        cached=stored.get("cached", False),
    )
    return Record(
        number=trial.number,
        evaluation=evaluation,
        dense=stored.get("dense", False),
        duplicate_of=stored.get("duplicate_of"),
        hypervolume=stored.get("hypervolume", 0.0),
    )
