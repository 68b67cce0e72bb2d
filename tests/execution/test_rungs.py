"""Successive halving after a search, decided from the study's trials."""

import dataclasses
import itertools

import numpy as np
import optuna
import pytest

from autoprune.execution import inline
from autoprune.execution.driver import Limits, StudyDriver, comparable, read_records
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

TRIALS = 32
PROBLEM = analytic_problem(budget_ms=3.0)


def new_study(sampler="tpe"):
    return optuna.create_study(
        directions=["minimize", "minimize"], sampler=build_sampler(sampler, PROBLEM, seed=2)
    )


def driver_of(study, *, trials=TRIALS, rungs=3):
    return StudyDriver(study, PROBLEM, limits=Limits(trials), rungs=rungs)


def with_dense(driver):
    if driver.dense is None:
        driver.record_dense(AnalyticEvaluator(PROBLEM)(PROBLEM.space.dense()))
    return driver


@pytest.fixture(scope="module")
def whole():
    """A search that nobody interrupted."""
    driver = with_dense(driver_of(new_study()))
    inline.run(driver, AnalyticEvaluator(PROBLEM))
    return driver


def beaten(record, others):
    mine = record.evaluation.loss, record.evaluation.latency_ms
    return any(
        other.evaluation.loss <= mine[0]
        and other.evaluation.latency_ms <= mine[1]
        and (other.evaluation.loss, other.evaluation.latency_ms) != mine
        for other in others
    )


def test_a_quarter_of_each_rung_goes_on_and_none_beats_them(whole):
    by_rung = [[r for r in whole.records if r.rung == n and not r.dense] for n in range(4)]
    assert [len(records) for records in by_rung] == [TRIALS, 8, 2, 0]
    for below, above in itertools.pairwise(by_rung):
        names = {dataclasses.replace(r.evaluation.candidate, rung=0) for r in above}
        chosen = [r for r in below if dataclasses.replace(r.evaluation.candidate, rung=0) in names]
        assert len(chosen) == len(above)
        assert not any(beaten(r, [o for o in below if o not in chosen]) for r in chosen)
    assert whole.stopped == f"all {TRIALS} trials are done"
    assert sum(record.counted for record in whole.records) == TRIALS


def test_search_itself_is_the_same_without_rungs(whole):
    plain = with_dense(driver_of(new_study(), rungs=0))
    inline.run(plain, AnalyticEvaluator(PROBLEM))
    assert plain.records == [record for record in whole.records if not record.rung]
    assert plain.stopped == whole.stopped


def test_scores_of_different_rungs_are_not_compared(whole):
    assert [r.rung for r in comparable(whole.records)] == [2, 2]
    assert comparable(whole.records[:10]) == whole.records[:10]
    # The hypervolume is the front's: with one network on a new rung it is that network's alone.
    first = next(record for record in whole.records if record.rung == 1)
    scores = first.evaluation
    dense = whole.dense.evaluation.latency_ms
    assert first.hypervolume == pytest.approx(scores.accuracy * (1 - scores.latency_ms / dense))


class Interrupted(AnalyticEvaluator):
    """Is interrupted before its so-and-so-many-th evaluation."""

    def __init__(self, left):
        super().__init__(PROBLEM)
        self.left = left

    def __call__(self, candidate, bar=()):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(candidate, bar)


@pytest.mark.parametrize("calls", [0, 5, TRIALS - 1, TRIALS, TRIALS + 3, TRIALS + 8, TRIALS + 9])
def test_interrupted_search_ends_as_if_nothing_had_happened(whole, calls):
    study = new_study()
    evaluator = Interrupted(calls)
    with pytest.raises(KeyboardInterrupt):
        inline.run(with_dense(driver_of(study)), evaluator)
    resumed = AnalyticEvaluator(PROBLEM)
    again = driver_of(study)
    inline.run(again, resumed)
    assert again.records == whole.records
    assert read_records(study, PROBLEM.space) == whole.records
    assert sorted(evaluator.calls + resumed.calls) == sorted(
        record.evaluation.candidate.key
        for record in whole.records
        if not record.dense and record.duplicate_of is None
    )


def test_samplers_do_not_see_promoted_trials_when_the_search_goes_on():
    study = new_study("nsga2")
    first = with_dense(driver_of(study, trials=16))
    inline.run(first, AnalyticEvaluator(PROBLEM))
    assert any("rung" in trial.user_attrs for trial in study.trials)

    more = driver_of(study, trials=20)
    assert not any("rung" in trial.user_attrs for trial in more.study.trials)
    inline.run(more, AnalyticEvaluator(PROBLEM))
    assert sum(record.counted for record in more.records) == 20
    assert sum(record.rung == 1 for record in more.records) >= 5
    assert len({record.number for record in more.records}) == len(more.records)


def test_workers_do_not_wait_for_the_slowest_of_a_rung():
    driver = driver_of(new_study("random"), trials=16, rungs=1)
    evaluator = AnalyticEvaluator(PROBLEM)
    begun = [driver.propose() for _ in range(16)]
    for proposal in begun[:8]:
        driver.record(proposal.number, evaluator(proposal.candidate))
    early = [driver.propose() for _ in range(3)]
    assert [p and p.candidate.rung for p in early] == [1, 1, None]  # a quarter of those known
    assert not driver.stopped
    for proposal in begun[8:]:
        driver.record(proposal.number, evaluator(proposal.candidate))
    while (proposal := driver.propose()) is not None:
        early.append(proposal)
    assert not driver.stopped  # some are still trained
    for proposal in filter(None, early):
        driver.record(proposal.number, evaluator(proposal.candidate))
    assert driver.propose() is None
    assert driver.stopped
    promoted = [record for record in driver.records if record.rung]
    assert 4 <= len(promoted) <= 6  # the quarter of all, and what had looked so before
    assert len({record.evaluation.candidate.key for record in promoted}) == len(promoted)


def test_network_that_cannot_be_trained_is_not_promoted_again():
    class Untrainable(AnalyticEvaluator):
        def __call__(self, candidate, bar=()):
            if candidate.rung:
                return self.failed(candidate, "RunError: the training loss is nan")
            return super().__call__(candidate, bar)

    driver = driver_of(new_study("random"), trials=16, rungs=2)
    inline.run(driver, Untrainable(PROBLEM))
    assert [(r.rung, r.evaluation.status) for r in driver.records[16:]] == [(1, "failed")] * 4
    assert {r.rung for r in comparable(driver.records)} == {0}
    assert np.isfinite(driver.records[-1].hypervolume)
