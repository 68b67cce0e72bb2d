"""The loop around the study: asks for candidates, takes evaluations, knows when to stop."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoprune.evaluation import Evaluation
from autoprune.execution.drafts import Drafts
from autoprune.execution.session import Session
from autoprune.execution.standings import standing
from autoprune.strategy.exhaustion import every_candidate
from autoprune.strategy.goals import LATENCY, Goals
from autoprune.strategy.halving import FACTOR, promising
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate, SearchSpace
from autoprune.tasks.base import Score
from autoprune.tasks.racing import Bar

#: Reason of a failed trial that has none: others than this driver closed it.
INTERRUPTED = "interrupted"

#: A candidate whose evaluation ended its process so often has failed.
ATTEMPTS = 3

#: Seconds between two looks at what other drivers do, where nothing else is left to do.
POLL_S = 0.5


# What the study stores of a trial beside its scores.
_DRIVER, _WITHDRAWN, _ATTEMPTS, _RUNG = "driver", "withdrawn", "attempts", "rung"


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
    def rung(self) -> int:
        """How long the network was trained; scores are comparable within a rung only."""
        return self.evaluation.candidate.rung

    @property
    def counted(self) -> bool:
        """Whether the trial used up one of the evaluations that were asked for."""
        interrupted = self.evaluation.reason == INTERRUPTED
        return not (self.dense or self.rung or interrupted or self.duplicate_of is not None)


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
        best: The best network so far that the goals admit.
        running: Evaluations that have begun and not ended.
        doing: How the sampler came to what it proposed last, where it says so.
        records: All that have ended, this one the last but for its copies. Not a copy: it grows
            with the search, and is not the listener's to change.
    """

    record: Record
    done: int
    total: int
    fresh: int
    seconds: float
    best: Record | None
    running: int = 0
    doing: str = ""
    records: Sequence[Record] = ()


#: Hears of every evaluation as it is recorded.
Listener = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class _Open:
    """A trial that is running and ours.

    Attributes:
        trial_id: Its identity in the storage.
        number: Its number in the study.
        candidate: Its candidate.
    """

    trial_id: int
    number: int
    candidate: Candidate


class StudyDriver:
    """Stands between the study and whatever evaluates candidates.

    The study is the truth: everything that is known of a finished trial is in it before the next
    is proposed, and a driver made on an old study continues it. Trials that were running when their
    process ended are proposed again, under the same number, before the sampler is asked. Nothing
    here is thread-safe.

    With rungs, successive halving follows once no new candidate is to be evaluated: of the networks
    that stand on a rung the most promising quarter goes on to the next, as trials of their own,
    which samplers do not see. The lowest rung goes first, but no worker waits for it: the next one
    begins with the networks that are known by then. All of it is decided from the study's trials.

    With a session the study is shared: other drivers propose and evaluate as well, and the limit of
    trials is for all together. Of two trials with the same candidate the one with the lower number
    stays. What drivers that died had begun is proposed again, as new trials.

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
        rungs: int = 0,
        session: Session | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take up the study where it stands.

        Args:
            study: All directions minimise: the loss, then each cost of the problem's goals.
            problem: The search space and the latency of its candidates.
            limits: When to stop.
            listeners: Called after every evaluation.
            racing: Whether evaluations may end early where a network as fast is clearly better.
            rungs: Rungs of longer training above the search's own.
            session: Of this driver, where others work on the study too; without one, whatever
                runs in the study is of a process that has ended.
            clock: Returns seconds; for tests.
        """
        assert not (rungs and session), "only one driver promotes"
        self._storage = Drafts(
            study._storage, alone=session is None, hidden=_RUNG if rungs else None
        )
        self.study = optuna.load_study(
            study_name=study.study_name, storage=self._storage, sampler=study.sampler
        )
        self.problem = problem
        self.limits = limits
        self.listeners = tuple(listeners)
        self.racing = racing
        self.rungs = rungs
        self.session = session
        self.stopped = ""
        self.records: list[Record] = []
        self._clock = clock
        self._began = clock()
        self._distributions = problem.space.distributions()
        self._known: dict[str, Record] = {}
        costs = problem.goals.costs
        self._least_loss = standing(costs)
        self._most_accurate = [standing(costs) for _ in range(rungs + 1)]
        self._top = 0
        self._enough = ""
        self._best: Record | None = None
        self._pending: dict[int, _Open] = {}
        self._copies: dict[str, list[_Open]] = {}
        self._others = 0
        self._lost: list[FrozenTrial] = []
        self._done = 0
        for record in read_records(study, problem.space):
            self._keep(record)
        open_ = self._left_open()
        self._left = collections.deque(trial for trial in open_ if not _rung_of(trial))
        self._left_promoted = collections.deque(trial for trial in open_ if _rung_of(trial))
        self._promoted = {record.evaluation.candidate.key for record in self.records if record.rung}
        self._fresh = 0
        self._failures_in_a_row = 0

    @property
    def dense(self) -> Record | None:
        """The unpruned network's record, ``None`` before it was evaluated."""
        return next((record for record in self.records if record.dense), None)

    def record_dense(self, evaluation: Evaluation) -> Record:
        """Store the unpruned network as a trial that no sampler proposed, and return its record.

        Where another driver was faster it is that one's.
        """
        attributes = self._attributes(evaluation) | {"dense": True}
        _, number = self._storage.publish(
            self.study._study_id,
            create_trial(
                state=TrialState.COMPLETE,
                params=self.problem.space.params(evaluation.candidate),
                distributions=self._distributions,
                values=self._values(evaluation),
                user_attrs=attributes,
            ),
        )
        self._look()
        if self.dense is not None:
            return self.dense
        record = Record(
            number=number,
            evaluation=evaluation,
            dense=True,
            hypervolume=float(attributes["hypervolume"]),
        )
        self._keep(record)
        return record

    def propose(self) -> Proposal | None:
        """Return the next candidate to evaluate, ``None`` where there is none.

        The search is over when :attr:`stopped` says why; otherwise what is left to do waits for
        evaluations of this driver, and a later call may return a candidate. Where it waits for
        other drivers alone, so does this call.

        A proposal that is already known becomes a trial with the known result, at no cost, and the
        sampler is asked again.
        """
        repeats = 0
        while not self._over():
            if self._enough:
                return self._promotion()
            if self._all_begun():
                if self._pending:
                    return None
                time.sleep(POLL_S)
                continue
            trial = self._next()
            if trial is None:
                continue
            candidate = trial.candidate
            if not self._is_known(candidate):
                return self._proposed(trial)
            self._copy(trial)
            repeats += 1
            if repeats >= self.limits.repeats:
                self._end(
                    f"the last {repeats} candidates were already known; "
                    "the sampler finds nothing new in this search space"
                )
        return None

    def _proposed(self, trial: _Open) -> Proposal:
        """Return an open trial as a proposal that waits for its evaluation."""
        self._pending[trial.number] = trial
        self._copies[trial.candidate.key] = []
        return Proposal(trial.number, trial.candidate, self._bar(trial.candidate))

    def record(self, number: int, evaluation: Evaluation) -> Record | None:
        """Store the evaluation of a proposal and return its record.

        Args:
            number: The proposal's trial number.
            evaluation: What came out, complete or failed.

        Returns:
            ``None`` where other drivers took this one for dead and evaluate the candidate again.
        """
        trial = self._pending.pop(number)
        copies = self._copies.pop(trial.candidate.key)
        try:
            record = self._tell(trial, evaluation)
        except (UpdateFinishedTrialError, ValueError):
            if self._storage.get_trial(trial.trial_id).state == TrialState.RUNNING:
                raise
            return None
        self._fresh += 1
        for copy in copies:
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
            best=self._best,
            running=len(self._pending),
            doing=str(getattr(self.study.sampler, "doing", "")),
            records=self.records,
        )
        for listener in self.listeners:
            listener(progress)
        return record

    def stop(self, reason: str) -> None:
        """Propose nothing more; the first reason stays."""
        self.stopped = self.stopped or reason

    def abandon(self) -> None:
        """Let go of every proposal that waits for its evaluation.

        Its trial stays as it is and is proposed again when the run goes on. That it was stopped on
        purpose says nothing against its candidate.
        """
        for trial in self._pending.values():
            with contextlib.suppress(Exception):  # what failed may be the storage
                if _attempts(self._storage.get_trial(trial.trial_id)):
                    self._storage.set_trial_user_attr(trial.trial_id, _ATTEMPTS, 0)
        self._pending.clear()
        self._copies.clear()

    # --- what is left to do ---------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """Propose no new candidate; where there are rungs, networks may still be promoted."""
        if not self.rungs:
            self.stop(reason)
        self._enough = self._enough or reason

    def _over(self) -> bool:
        self._look()
        if not self._enough and self._done + len(self._pending) >= self.limits.trials:
            self._end(f"all {self.limits.trials} trials are done")
        seconds = self.limits.seconds
        if seconds is not None and self._clock() - self._began >= seconds:
            self.stop(f"the time limit of {seconds:g} s is reached")
        if self._every and all(self._is_known(candidate) for candidate in self._every):
            self._end(
                f"all {len(self._every)} candidates within the budget are evaluated; "
                "of those on one plateau of the latency, the widest"
            )
        return bool(self.stopped)

    @cached_property
    def _every(self) -> tuple[Candidate, ...] | None:
        """All candidates, where they are few."""
        return every_candidate(self.problem)

    def _all_begun(self) -> bool:
        """Return whether other drivers evaluate what is left."""
        begun = self._done + len(self._pending) + self._others
        return begun >= self.limits.trials

    def _next(self) -> _Open | None:
        """Return a trial that is running and ours; ``None`` where another driver was faster."""
        if self._left:
            return self._again(self._left.popleft())
        study_id = self.study._study_id
        if self._lost:
            lost = self._lost.pop()
            opened = self._storage.publish(study_id, self._retry(lost))
        else:
            asked = self.study.ask(self._distributions)
            if self.session is not None:
                asked.set_user_attr(_DRIVER, self.session.driver)
            opened = asked._trial_id, asked.number
            if self._storage.drafted(asked._trial_id):
                opened = self._storage.publish(study_id)
        trial_id, number = opened
        space = self.problem.space
        candidate = space.snap(space.candidate(self._storage.get_trial(trial_id).params))
        trial = _Open(trial_id, number, candidate)
        return trial if self.session is None or self._is_ours(trial) else None

    def _promotion(self) -> Proposal | None:
        """Return the next network that is trained longer, ``None`` where there is none now."""
        while self._left_promoted:
            trial = self._again(self._left_promoted.popleft())
            if trial is not None:
                self._promoted.add(trial.candidate.key)
                return self._proposed(trial)
        for rung in range(self.rungs):
            for record in self._best_of(rung):
                candidate = dataclasses.replace(record.evaluation.candidate, rung=rung + 1)
                if candidate.key not in self._promoted:
                    self._promoted.add(candidate.key)
                    return self._proposed(self._promoted_trial(record, candidate))
        if not self._pending:  # which may yet lead to promotions
            self.stop(self._enough)
        return None

    def _best_of(self, rung: int) -> list[Record]:
        """Return the networks of a rung that go on to the next, as far as is known."""
        scored = [
            record
            for record in self.records
            if record.rung == rung
            and not (record.dense or record.duplicate_of is not None)
            and record.evaluation.status != "failed"
        ]
        whole = [record for record in scored if record.complete]
        costs = [[r.evaluation.cost(name) for name in self.problem.goals.costs] for r in whole]
        best = promising(
            np.array([record.evaluation.loss for record in whole]),
            np.array(costs, float).reshape(len(whole), len(self.problem.goals.costs)),
            count=len(scored) // FACTOR,
        )
        return [whole[index] for index in best]

    def _promoted_trial(self, record: Record, candidate: Candidate) -> _Open:
        trial_id, number = self._storage.publish(
            self.study._study_id,
            create_trial(
                state=TrialState.RUNNING,
                params=self.problem.space.params(candidate),
                distributions=self._distributions,
                user_attrs={_RUNG: candidate.rung, "promoted_from": record.number},
            ),
        )
        return _Open(trial_id, number, candidate)

    def _left_open(self) -> list[FrozenTrial]:
        """Return the trials that an earlier session of this driver did not finish."""
        driver = None if self.session is None else self.session.driver
        trials = self._storage.kept.get_all_trials(
            self.study._study_id, deepcopy=False, states=(TrialState.RUNNING,)
        )
        return [
            trial for trial in trials if driver is None or trial.user_attrs.get(_DRIVER) == driver
        ]

    def _again(self, trial: FrozenTrial) -> _Open | None:
        """Return an open trial that goes on; ``None`` where it does not."""
        if not self._is_whole(trial):
            self._withdraw(trial._trial_id, "its process ended before it had a candidate")
            return None
        opened = _Open(trial._trial_id, trial.number, _candidate(trial, self.problem.space))
        attempts = _attempts(trial) + 1
        with contextlib.suppress(UpdateFinishedTrialError):
            if attempts < ATTEMPTS:
                self._storage.set_trial_user_attr(trial._trial_id, _ATTEMPTS, attempts)
                return opened
            self._tell(opened, self._deadly(opened.candidate, attempts))
        return None

    def _deadly(self, candidate: Candidate, attempts: int) -> Evaluation:
        return Evaluation(
            candidate=candidate,
            status="failed",
            latency_ms=float(self.problem.latency_ms([candidate])[0]),
            macs=0,
            params=0,
            costs=self.problem.extra_costs(candidate),
            reason=f"its process ended {attempts} times while it was evaluated",
        )

    # --- other drivers --------------------------------------------------------------------------

    def _look(self) -> None:
        """Take up what other drivers did since the last look."""
        if self.session is None:
            return
        trials = self.study.get_trials(deepcopy=False)
        known = {record.number for record in self.records}
        fresh = [trial for trial in trials if trial.number not in known]
        for record in _records(fresh, self.problem.space):
            if not (record.dense and self.dense):
                self._keep(record)
        self._others = 0
        for trial in trials:
            driver = trial.user_attrs.get(_DRIVER, "")
            if trial.state != TrialState.RUNNING or driver == self.session.driver:
                continue
            if self.session.lost(driver):
                self._take_over(trial)
            elif "duplicate_of" not in trial.user_attrs:
                self._others += 1

    def _take_over(self, trial: FrozenTrial) -> None:
        """Close a trial whose driver is dead; its candidate is proposed again, by us alone."""
        if not self._withdraw(trial._trial_id, "its driver was lost"):
            return  # another driver was faster
        if _attempts(trial) + 1 < ATTEMPTS and self._is_whole(trial):
            self._lost.append(trial)

    def _is_whole(self, trial: FrozenTrial) -> bool:
        """Return whether a trial has a candidate."""
        return self._distributions.keys() <= trial.params.keys()

    def _retry(self, lost: FrozenTrial) -> FrozenTrial:
        assert self.session is not None, "only other drivers can be lost"
        return create_trial(
            state=TrialState.RUNNING,
            params=lost.params,
            distributions=lost.distributions,
            user_attrs={
                _DRIVER: self.session.driver,
                "retry_of": lost.number,
                _ATTEMPTS: _attempts(lost) + 1,
            },
            system_attrs=lost.system_attrs,
        )

    def _is_ours(self, trial: _Open) -> bool:
        """Return whether a new trial stays; it was withdrawn where an earlier one is in its way.

        Trials come whole and in the order of their numbers, so that all drivers decide alike.
        """
        space, begun = self.problem.space, 0
        for other in self.study.get_trials(deepcopy=False):
            if other.number >= trial.number or not _counts(other) or not self._is_whole(other):
                continue
            key = space.snap(space.candidate(other.params)).key
            if key == trial.candidate.key and other.number not in self._pending:
                if other.state.is_finished():
                    self._look()  # it may have ended just now; then it is known, and copied
                    return True
                self._withdraw(trial.trial_id, f"trial {other.number} has the same candidate")
                return False
            begun += 1
        if begun < self.limits.trials:
            return True
        self._withdraw(trial.trial_id, "as many trials as asked for had begun")
        return False

    def _withdraw(self, trial_id: int, why: str) -> bool:
        """Close a trial that nobody evaluates; return whether it was open until then."""
        try:
            self._storage.set_trial_user_attr(trial_id, _WITHDRAWN, why)
            return self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    # --- what is known --------------------------------------------------------------------------

    def _bar(self, candidate: Candidate) -> Bar:
        """Return the scores of the network of least loss among those that cost no more."""
        if not self.racing or candidate.rung:
            return ()
        costs = self.problem.cost_values([candidate])[0].tolist()
        rival = self._least_loss.at(*costs)
        return () if rival is None else rival.rungs

    def _values(self, evaluation: Evaluation) -> list[float]:
        """Return what the study minimises."""
        return [evaluation.loss, *map(evaluation.cost, self.problem.goals.costs)]

    def _is_known(self, candidate: Candidate) -> bool:
        return candidate.key in self._known or candidate.key in self._copies

    def _copy(self, trial: _Open) -> None:
        """Give ``trial`` the known result of its candidate, now or when it has come."""
        key = trial.candidate.key
        known = self._known.get(key)
        if known is not None:
            self._tell(trial, known.evaluation, duplicate_of=known.number)
            return
        if self.session is not None:
            original = next(n for n, open_ in self._pending.items() if open_.candidate.key == key)
            self._storage.set_trial_user_attr(trial.trial_id, "duplicate_of", original)
        self._copies[key].append(trial)

    def _tell(
        self, trial: _Open, evaluation: Evaluation, *, duplicate_of: int | None = None
    ) -> Record:
        attributes = self._attributes(evaluation)
        if duplicate_of is not None:
            attributes |= {"duplicate_of": duplicate_of, "seconds": 0.0}
        self._storage.set_trial_user_attrs(trial.trial_id, attributes)
        failed = evaluation.status == "failed"
        state = TrialState.FAIL if failed else TrialState.COMPLETE
        values = None if failed else self._values(evaluation)
        if trial.candidate.rung:  # the sampler did not propose it
            self._storage.set_trial_state_values(trial.trial_id, state, values)
        else:
            self.study.tell(trial.number, values, state=state)
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
        self._done += record.counted
        evaluation = record.evaluation
        if evaluation.status != "failed":
            self._known.setdefault(evaluation.candidate.key, record)
        if not record.complete or record.rung > self.rungs:
            return
        if not record.rung:
            self._least_loss.add(evaluation, -evaluation.loss)
        if _accurate(evaluation, self.problem.goals):
            self._most_accurate[record.rung].add(evaluation, evaluation.accuracy)
        self._top = max(self._top, record.rung)
        rivals = [record] if self._best is None else [self._best, record]
        self._best = best_record(comparable(rivals), self.problem.goals)

    def _attributes(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return what the study stores beside the values; :func:`read_records` reads it."""
        rung = evaluation.candidate.rung
        complete = evaluation.status == "complete"
        top = max(self._top, rung) if complete else self._top
        reached = self._most_accurate[top]
        if complete and rung == top and _accurate(evaluation, self.problem.goals):
            reached = reached.with_(evaluation, evaluation.accuracy)
        dense = self.problem.dense_costs.tolist()
        attributes: dict[str, Any] = {
            "key": evaluation.candidate.key,
            "latency_ms": evaluation.latency_ms,
            "macs": evaluation.macs,
            "params": evaluation.params,
            "seconds": evaluation.seconds,
            "hypervolume": reached.area(*dense) / math.prod(dense),
        }
        if evaluation.costs:
            attributes["costs"] = dict(evaluation.costs)
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


def read_records(study: optuna.Study, space: SearchSpace) -> list[Record]:
    """Return every trial of the study that has ended, in the order they ended.

    Trials that were withdrawn are left out, and of several unpruned references all but the first.
    """
    return _records(study.get_trials(deepcopy=False), space)


def _records(trials: Iterable[FrozenTrial], space: SearchSpace) -> list[Record]:
    ended = [trial for trial in trials if trial.state.is_finished() and not _withdrawn(trial)]
    ended.sort(key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete))
    dense = min((t.number for t in ended if t.user_attrs.get("dense")), default=None)
    return [
        _record(trial, space)
        for trial in ended
        if trial.number == dense or not trial.user_attrs.get("dense")
    ]


def _withdrawn(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and _WITHDRAWN in trial.user_attrs


def _counts(trial: FrozenTrial) -> bool:
    """Return whether a trial uses up one of those that were asked for, now or when it has ended."""
    attributes = trial.user_attrs
    idle = trial.state == TrialState.FAIL and (
        _WITHDRAWN in attributes or "reason" not in attributes
    )
    return not (idle or attributes.get("dense") or "duplicate_of" in attributes)


def _attempts(trial: FrozenTrial) -> int:
    """Return how often the process of a trial ended while it was evaluated."""
    return int(trial.user_attrs.get(_ATTEMPTS, 0))


def comparable(records: Iterable[Record]) -> list[Record]:
    """Return the records of the highest rung that any network was scored on.

    Scores of networks that were trained for different times say nothing of each other.
    """
    known = list(records)
    top = max((record.rung for record in known if record.complete), default=0)
    return [record for record in known if record.rung == top]


def admitted(records: Iterable[Record], goals: Goals) -> list[Record]:
    """Return complete records within budget and limits that are as accurate as was asked for."""
    most = dict(goals.limits)
    if goals.budget_ms is not None:
        most[LATENCY] = min(goals.budget_ms, most.get(LATENCY, goals.budget_ms))
    return [
        record
        for record in records
        if record.complete
        and _accurate(record.evaluation, goals)
        and all(record.evaluation.cost(name) <= value for name, value in most.items())
    ]


def _rung_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(_RUNG, 0))


def _candidate(trial: FrozenTrial, space: SearchSpace) -> Candidate:
    """Return the candidate of a trial of the study."""
    snapped = space.snap(space.candidate(trial.params))
    return dataclasses.replace(snapped, rung=_rung_of(trial))


def _accurate(evaluation: Evaluation, goals: Goals) -> bool:
    return goals.min_accuracy is None or evaluation.accuracy >= goals.min_accuracy


def best_record(records: Iterable[Record], goals: Goals) -> Record | None:
    """Return the best record that the goals admit, ``None`` where they admit none.

    That is the most accurate one; where an accuracy is asked for and there is no budget, it is the
    one of least cost, the first of several. Of equal accuracy the lower loss wins, then the lower
    latency, then the earlier trial.
    """
    within = admitted(records, goals)
    if goals.min_accuracy is not None and goals.budget_ms is None:
        return min(
            within, key=lambda r: (r.evaluation.cost(goals.costs[0]), *_rank(r)), default=None
        )
    return min(within, key=_rank, default=None)


def _rank(record: Record) -> tuple[float, float, float, int]:
    scores = record.evaluation
    return -scores.accuracy, scores.loss, scores.latency_ms, record.number


def _record(trial: FrozenTrial, space: SearchSpace) -> Record:
    stored = trial.user_attrs
    failed = trial.state != TrialState.COMPLETE
    loss = math.nan if failed else trial.values[0]
    evaluation = Evaluation(
        candidate=_candidate(trial, space),
        status="failed" if failed else "screened" if stored.get("screened") else "complete",
        loss=loss,
        accuracy=math.nan if failed else stored["accuracy"],
        samples=stored.get("samples", 0),
        loss_stderr=stored.get("loss_stderr", math.nan),
        rungs=tuple(Score(*rung) for rung in stored.get("rungs", ())),
        latency_ms=stored.get("latency_ms", math.nan),
        macs=stored.get("macs", 0),
        params=stored.get("params", 0),
        costs=stored.get("costs", {}),
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
