import dataclasses
import functools
import math

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from autoprune.evaluation import Evaluation
from autoprune.execution import inline
from autoprune.execution.driver import (
    ATTEMPTS,
    Limits,
    Progress,
    Record,
    StudyDriver,
    best_record,
    read_records,
)
from autoprune.strategy.exhaustion import every_candidate
from autoprune.strategy.goals import Cost, Goals
from autoprune.strategy.pareto import hypervolume
from autoprune.strategy.registry import SAMPLERS, build_sampler
from autoprune.strategy.space import Candidate
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem
from autoprune.testing.samplers import PROBLEMS, made_up_loss, quiet_optuna


class Script(BaseSampler):
    """Proposes given ratios of the first group, in order."""

    def __init__(self, ratios):
        self.ratios = list(ratios)

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        if param_name == "ratio/group0":
            return self.ratios.pop(0)
        return False if param_name.startswith("drop/") else 0.0


def study_with(sampler):
    return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)


def make(ratios, *, problem=None, limits=None, **options):
    problem = problem or analytic_problem()
    study = study_with(Script(ratios))
    return StudyDriver(study, problem, limits=limits or Limits(trials=len(ratios)), **options)


def removed(problem, ratio):
    return problem.space.snap(Candidate((ratio, 0.0, 0.0), (False,)))


def test_stores_what_the_evaluator_returns_and_reads_it_back():
    driver = make([0.25, 0.5])
    evaluator = AnalyticEvaluator(driver.problem)

    inline.run(driver, evaluator)

    assert [r.evaluation.candidate.ratios[0] for r in driver.records] == [0.25, 0.5]
    assert driver.records == read_records(driver.study, driver.problem.space)
    first = driver.records[0].evaluation
    assert first.loss == pytest.approx(0.0625)
    assert first.accuracy == pytest.approx(math.exp(-0.0625))
    assert first.latency_ms == pytest.approx(3.75)  # 2750 units and one block
    assert (first.macs, first.params) == (2750**2, 2750)
    assert (first.samples, first.loss_stderr, len(first.rungs)) == (1000, 10.0, 2)
    assert "all 2 trials are done" in driver.stopped


def test_failed_evaluation_is_a_row_with_its_reason():
    problem = analytic_problem()
    evaluator = AnalyticEvaluator(problem, failing=[removed(problem, 0.5).key])
    driver = make([0.25, 0.5, 0.75], problem=problem)

    inline.run(driver, evaluator)

    states = [trial.state for trial in driver.study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    failed = read_records(driver.study, problem.space)[1]
    assert failed.evaluation.reason == "ValueError: told to fail"
    assert failed.evaluation.latency_ms == pytest.approx(3.5)
    assert math.isnan(failed.evaluation.accuracy)
    assert failed.counted


def test_known_candidates_are_copied_and_do_not_count():
    driver = make([0.25, 0.25, 0.5], limits=Limits(trials=2))
    evaluator = AnalyticEvaluator(driver.problem)

    inline.run(driver, evaluator)

    assert len(evaluator.calls) == 2
    copy = driver.records[1]
    assert (copy.number, copy.duplicate_of, copy.counted) == (1, 0, False)
    assert copy.evaluation.loss == driver.records[0].evaluation.loss
    assert copy.evaluation.seconds == 0.0
    assert read_records(driver.study, driver.problem.space)[1].duplicate_of == 0


def test_candidate_that_is_being_evaluated_is_copied_when_it_is_done():
    driver = make([0.25, 0.25, 0.5], limits=Limits(trials=2))
    evaluator = AnalyticEvaluator(driver.problem)

    first, second = driver.propose(), driver.propose()

    assert (first.number, second.number) == (0, 2)
    assert driver.study.get_trials()[1].state == TrialState.RUNNING
    driver.record(first.number, evaluator(first.candidate))
    assert driver.study.get_trials()[1].state == TrialState.COMPLETE
    assert [r.duplicate_of for r in driver.records] == [None, 0]


def test_proposals_already_known_end_the_search_after_a_bound():
    driver = make([0.25] * 10, limits=Limits(trials=10, repeats=4))
    evaluator = AnalyticEvaluator(driver.problem)

    inline.run(driver, evaluator)

    assert len(evaluator.calls) == 1
    assert len(driver.records) == 5
    assert "already known" in driver.stopped


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_search_ends_when_all_candidates_are_evaluated(name):
    problem = PROBLEMS["few candidates"]
    every = {candidate.key for candidate in every_candidate(problem)}
    driver = StudyDriver(study_with(SAMPLERS[name](problem, seed=0)), problem, limits=Limits(50))
    loss = functools.partial(made_up_loss, problem.space)
    with quiet_optuna():
        while (proposal := driver.propose()) is not None:
            candidate = proposal.candidate
            driver.record(
                proposal.number,
                Evaluation(
                    candidate=candidate,
                    status="complete",
                    loss=loss(candidate),
                    latency_ms=float(problem.latency_ms([candidate])[0]),
                    accuracy=math.exp(-loss(candidate)),
                    macs=1,
                    params=1,
                ),
            )
    evaluated = {record.evaluation.candidate.key for record in driver.records}
    if name == "uniform":  # has a family of its own, and only that
        assert "already known" in driver.stopped
    else:
        assert evaluated >= every
        assert f"all {len(every)} candidates within the budget" in driver.stopped
    # Hardly anything was proposed twice.
    assert len(driver.records) <= len(evaluated) + driver.limits.repeats


def test_failures_in_a_row_end_the_search():
    problem = analytic_problem()
    keys = [removed(problem, ratio).key for ratio in (0.2, 0.3, 0.4, 0.5)]
    driver = make([0.1, 0.2, 0.3, 0.4, 0.5], problem=problem, limits=Limits(5, failures=3))

    inline.run(driver, AnalyticEvaluator(problem, failing=keys))

    assert [r.complete for r in driver.records] == [True, False, False, False]
    assert "3 trials in a row failed: ValueError: told to fail" in driver.stopped


def test_time_limit_stops_proposals():
    now = [0.0]
    driver = make([0.1, 0.2, 0.3], limits=Limits(3, seconds=10.0), clock=lambda: now[0])
    evaluator = AnalyticEvaluator(driver.problem)
    proposal = driver.propose()
    now[0] = 9.9
    assert driver.propose() is not None
    now[0] = 10.0

    assert driver.propose() is None
    assert "time limit of 10 s" in driver.stopped
    driver.record(proposal.number, evaluator(proposal.candidate))  # what runs may still end
    assert driver.records[0].complete


def test_continues_a_study_without_losing_or_repeating_a_trial():
    problem = analytic_problem(budget_ms=3.0)
    study = study_with(build_sampler("random", problem, seed=3))
    evaluator = AnalyticEvaluator(problem)
    first = StudyDriver(study, problem, limits=Limits(trials=5))
    first.record_dense(evaluator(problem.space.dense()))
    inline.run(first, evaluator)
    before = list(first.records)
    left = StudyDriver(study, problem, limits=Limits(trials=6)).propose()  # its process was killed

    second = StudyDriver(study, problem, limits=Limits(trials=8))
    inline.run(second, evaluator)

    assert second.records[:6] == before
    again = second.records[6]
    assert (again.number, again.evaluation.candidate) == (left.number, left.candidate)
    assert again.complete
    assert sum(record.counted for record in second.records) == 8
    assert len(set(evaluator.calls)) == len(evaluator.calls) == 9
    assert [record.number for record in second.records] == list(range(9))


def test_resumed_search_proposes_what_an_unbroken_one_does():
    def candidates(sessions):
        problem = analytic_problem(budget_ms=3.0)
        study = study_with(build_sampler("tpe", problem, seed=3))
        for trials in sessions:
            driver = StudyDriver(study, problem, limits=Limits(trials))
            inline.run(driver, AnalyticEvaluator(problem))
        return [record.evaluation.candidate for record in driver.records]

    assert candidates([25]) == candidates([12, 25])


class Stopped(AnalyticEvaluator):
    """Is interrupted in its second evaluation."""

    def __call__(self, candidate, bar=()):
        if self.calls:
            raise KeyboardInterrupt
        return super().__call__(candidate, bar)


def test_interrupted_trial_stays_open_and_is_evaluated_when_the_search_goes_on():
    problem = analytic_problem()
    driver = make([0.25, 0.5], problem=problem)
    with pytest.raises(KeyboardInterrupt):
        inline.run(driver, Stopped(problem))
    states = [trial.state for trial in driver.study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]

    again = StudyDriver(driver.study, problem, limits=Limits(trials=2))
    inline.run(again, AnalyticEvaluator(problem))

    assert [r.evaluation.candidate.ratios[0] for r in again.records] == [0.25, 0.5]


def test_candidate_that_keeps_killing_its_process_has_failed():
    driver = make([0.25, 0.5])
    deadly = driver.propose()
    for _ in range(ATTEMPTS - 1):
        driver = StudyDriver(driver.study, driver.problem, limits=Limits(trials=2))
        assert driver.propose() == deadly  # and its process is killed

    driver = StudyDriver(driver.study, driver.problem, limits=Limits(trials=2))
    inline.run(driver, AnalyticEvaluator(driver.problem))

    assert [record.complete for record in driver.records] == [False, True]
    assert "ended 3 times" in driver.records[0].evaluation.reason
    assert driver.records == read_records(driver.study, driver.problem.space)


def test_interruptions_on_purpose_say_nothing_against_a_candidate():
    driver = make([0.25, 0.5])
    inline.run(driver, AnalyticEvaluator(driver.problem))
    study = driver.study
    for _ in range(2 * ATTEMPTS):
        driver = StudyDriver(study, driver.problem, limits=Limits(trials=3))
        study.sampler.ratios = [0.75]
        driver.propose()
        driver.abandon()

    driver = StudyDriver(study, driver.problem, limits=Limits(trials=3))
    inline.run(driver, AnalyticEvaluator(driver.problem))

    assert [record.complete for record in driver.records] == [True] * 3


def test_dense_network_is_a_trial_that_counts_for_nothing_but_is_known():
    driver = make([0.0, 0.5], limits=Limits(trials=1))
    evaluator = AnalyticEvaluator(driver.problem)

    dense = driver.record_dense(evaluator(driver.problem.space.dense()))
    inline.run(driver, evaluator)

    assert (dense.number, dense.dense, dense.counted) == (0, True, False)
    assert StudyDriver(driver.study, driver.problem, limits=Limits(1)).dense == dense
    assert [record.duplicate_of for record in driver.records] == [None, 0, None]
    assert len(evaluator.calls) == 2


class Both(BaseSampler):
    """Proposes whole candidates, in order."""

    def __init__(self, candidates):
        self.candidates = list(candidates)

    def infer_relative_search_space(self, study, trial):
        return self.space.distributions()

    def sample_relative(self, study, trial, search_space):
        return dict(self.space.params(self.candidates.pop(0)))

    def sample_independent(self, study, trial, param_name, param_distribution):
        raise AssertionError(param_name)


def two_candidates(*, racing=True, sessions=(2,)):
    """Search a network of loss 0.25, then one as slow whose loss is 0.375."""
    problem = analytic_problem()
    sampler = Both([Candidate((0.5, 0.0, 0.0), (False,)), Candidate((0.0, 0.5, 0.0), (False,))])
    sampler.space = problem.space
    study, evaluator = study_with(sampler), AnalyticEvaluator(problem, stderr=0.0)
    for trials in sessions:
        driver = StudyDriver(study, problem, limits=Limits(trials), racing=racing)
        inline.run(driver, evaluator)
    return driver


def test_network_worse_than_one_as_fast_is_screened_and_counts_for_nothing_but_the_sampler():
    driver, whole = two_candidates(), two_candidates(racing=False)

    worse = driver.records[1]
    assert [r.evaluation.status for r in driver.records] == ["complete", "screened"]
    assert (worse.evaluation.samples, len(worse.evaluation.rungs)) == (256, 1)
    trial = driver.study.get_trials()[1]
    assert (trial.state, trial.user_attrs["screened"]) == (TrialState.COMPLETE, True)
    assert trial.values[0] == pytest.approx(0.375)
    assert worse.counted
    assert worse.hypervolume == driver.records[0].hypervolume
    assert best_record([worse], Goals()) is None
    assert driver.records == read_records(driver.study, driver.problem.space)
    assert [r.evaluation.status for r in whole.records] == ["complete", "complete"]


def test_what_a_network_is_compared_with_comes_from_the_study():
    assert two_candidates(sessions=(1, 2)).records == two_candidates().records


def test_bar_is_the_least_loss_among_networks_that_are_as_fast():
    driver = make([0.2, 0.5, 0.3, 0.4, 0.6])
    evaluator = AnalyticEvaluator(driver.problem)
    for _ in range(3):
        proposal = driver.propose()
        driver.record(proposal.number, evaluator(proposal.candidate))
    by_ratio = {r.evaluation.candidate.ratios[0]: r.evaluation for r in driver.records}

    fourth, fifth = driver.propose(), driver.propose()

    assert fourth.bar == by_ratio[0.5].rungs  # only that one is as fast
    assert fifth.bar == ()


def test_listeners_hear_of_every_evaluation():
    heard: list[Progress] = []
    problem = analytic_problem(budget_ms=3.6)
    driver = make([0.25, 0.75, 0.5], problem=problem, listeners=[heard.append])

    inline.run(driver, AnalyticEvaluator(problem))

    assert [(p.done, p.total, p.fresh) for p in heard] == [(1, 3, 1), (2, 3, 2), (3, 3, 3)]
    # The first is over the budget; the last is more accurate than the second.
    assert [p.best.number if p.best else None for p in heard] == [None, 1, 2]
    scores = [p.record.evaluation for p in heard]
    for count, progress in enumerate(heard, start=1):
        expected = hypervolume(
            np.array([s.accuracy for s in scores[:count]]),
            np.array([s.latency_ms for s in scores[:count]]),
            dense_ms=4.0,
        )
        assert progress.record.hypervolume == pytest.approx(expected)


def scored(number, accuracy, loss, latency_ms):
    problem = analytic_problem()
    known = AnalyticEvaluator(problem)(problem.space.dense())
    scores = dataclasses.replace(known, accuracy=accuracy, loss=loss, latency_ms=latency_ms)
    return Record(number=number, evaluation=scores)


@pytest.mark.parametrize(
    ("budget_ms", "best"),
    [(None, 0), (9.0, 2), (4.0, 3), (3.0, 5), (1.0, None)],
)
def test_best_is_most_accurate_then_least_loss_then_fastest_then_first(budget_ms, best):
    records = [
        scored(0, 0.9, 0.5, 10.0),
        scored(1, 0.8, 0.7, 5.0),
        scored(2, 0.8, 0.6, 6.0),
        scored(3, 0.7, 0.9, 3.5),
        scored(4, 0.7, 0.9, 4.0),
        scored(5, 0.5, 1.0, 3.0),
        scored(6, 0.5, 1.0, 3.0),
    ]
    found = best_record(reversed(records), Goals(budget_ms=budget_ms))
    assert (found.number if found else None) == best


def units(widths, keep):
    return widths.sum(axis=1) * 1.0


def rest(widths, keep):
    return 1.0 + 3000.0 - widths[:, 0]


class TestSeveralCosts:
    """Three objectives: loss, units, and something that grows as the first group shrinks."""

    @pytest.fixture
    def problem(self):
        costs = Cost("latency@other", units), Cost("memory", rest)
        return dataclasses.replace(analytic_problem(), costs=costs)

    def driver(self, problem, ratios, **options):
        study = optuna.create_study(directions=["minimize"] * 3, sampler=Script(ratios))
        return StudyDriver(study, problem, limits=Limits(trials=len(ratios)), **options)

    def test_the_study_minimises_all_and_reads_them_back(self, problem):
        driver = self.driver(problem, [0.2, 0.5])
        inline.run(driver, AnalyticEvaluator(problem))
        assert [t.values[1:] for t in driver.study.trials] == [[2800.0, 2201.0], [2500.0, 2501.0]]
        assert driver.records == read_records(driver.study, problem.space)
        assert driver.records[1].evaluation.costs == {"latency@other": 2500.0, "memory": 2501.0}
        assert driver.records[1].evaluation.latency_ms == pytest.approx(3.5)

    def test_hypervolume_is_that_of_all_costs(self, problem):
        driver = self.driver(problem, [0.2, 0.5])
        driver.record_dense(AnalyticEvaluator(problem)(problem.space.dense()))
        inline.run(driver, AnalyticEvaluator(problem))
        # Whatever is narrower has more of the second cost than the unpruned network.
        assert driver.records[-1].hypervolume == 0.0

    def test_only_those_that_cost_no_more_end_an_evaluation(self, problem):
        driver = self.driver(problem, [0.2, 0.5])
        evaluator = AnalyticEvaluator(problem)
        first = driver.propose()
        driver.record(first.number, evaluator(first.candidate))
        assert driver.propose().bar == ()  # less of one, more of the other

    def test_networks_below_an_accuracy_count_for_nothing(self, problem):
        goals = dataclasses.replace(problem, costs=(), min_accuracy=0.9)
        study = study_with(Script([0.5, 0.25]))
        driver = StudyDriver(study, goals, limits=Limits(trials=2))
        inline.run(driver, AnalyticEvaluator(goals))
        low, high = driver.records
        assert low.evaluation.accuracy < 0.9 < high.evaluation.accuracy
        assert low.hypervolume == 0.0
        expected = high.evaluation.accuracy * (1.0 - 3.75 / goals.dense_ms)
        assert high.hypervolume == pytest.approx(expected)
        assert best_record(driver.records, goals.goals) is high
