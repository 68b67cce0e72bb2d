"""Several drivers on one study, step by step in one process."""

from types import SimpleNamespace

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autoprune.execution import driver as module
from autoprune.execution.driver import Limits, StudyDriver, read_records
from autoprune.execution.session import Session
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Drivers:
    """Drivers on one study, each with a connection of its own."""

    def __init__(self, folder, *, trials, kind="journal", seeds=(1, 1)):
        self.problem = analytic_problem(budget_ms=3.0)
        self.evaluator = AnalyticEvaluator(self.problem)
        self.clock = Clock()
        self.drivers = []
        for name, seed in enumerate(seeds):
            study = optuna.create_study(
                storage=(
                    JournalStorage(JournalFileBackend(str(folder / "study.journal")))
                    if kind == "journal"
                    else f"sqlite:///{folder}/study.db"
                ),
                study_name="shared",
                directions=["minimize", "minimize"],
                sampler=build_sampler("random", self.problem, seed=seed),
                load_if_exists=True,
            )
            session = Session(study, str(name), clock=self.clock)
            session._sign(0.0)
            self.drivers.append(
                StudyDriver(study, self.problem, limits=Limits(trials), session=session)
            )

    def finish(self, driver, proposal):
        return driver.record(proposal.number, self.evaluator(proposal.candidate, proposal.bar))

    def trials(self):
        return self.drivers[0].study.get_trials()


@pytest.fixture(params=["journal", "sqlite"])
def two(request, tmp_path):
    return Drivers(tmp_path, trials=6, kind=request.param)


def test_drivers_share_what_was_asked_for_and_what_was_found(two):
    first, second = two.drivers
    held = first.propose()
    for _ in range(5):
        two.finish(second, second.propose())
    two.finish(first, held)

    assert first.propose() is None
    assert second.propose() is None
    assert "all 6 trials are done" in first.stopped == second.stopped
    calls = two.evaluator.calls
    assert len(calls) == len(set(calls)) == 6
    numbers = [sorted(r.number for r in driver.records) for driver in two.drivers]
    assert numbers[0] == numbers[1]
    assert {r.number for r in read_records(first.study, two.problem.space)} == set(numbers[0])


def test_what_another_driver_found_is_known_at_the_next_proposal(two):
    first, second = two.drivers
    found = two.finish(first, first.propose())
    second.propose()
    assert second.records == [found]
    third = second._bar(found.evaluation.candidate)
    assert third == found.evaluation.rungs


def test_of_the_same_candidate_the_later_trial_is_withdrawn(two, monkeypatch):
    first, second = two.drivers
    held = first.propose()
    # Of the same seed and number, as if both had proposed at the same moment.
    study, distributions = second.study, second._distributions
    with monkeypatch.context() as patch:
        patch.setattr(type(second._storage.kept), "get_n_trials", lambda self, study_id: 0)
        patch.setattr(module.Drafts, "get_all_trials", lambda self, *args, **kwargs: [])
        trial = study.ask(distributions)
    assert trial.params == two.problem.space.params(held.candidate)
    asked, ask = [trial], study.ask
    monkeypatch.setattr(study, "ask", lambda known: asked.pop() if asked else ask(known))

    proposal = second.propose()

    states = {t.number: t for t in two.trials()}
    assert states[1].state == TrialState.FAIL
    assert states[1].user_attrs["withdrawn"] == "trial 0 has the same candidate"
    assert proposal.number == 2
    assert proposal.candidate != held.candidate
    two.finish(first, held)
    two.finish(second, proposal)
    assert sorted(r.number for r in read_records(study, two.problem.space)) == [0, 2]


def test_trial_beyond_what_was_asked_for_is_withdrawn(tmp_path, monkeypatch):
    drivers = Drivers(tmp_path, trials=1)
    first, second = drivers.drivers
    begun = iter([False, True])  # it looked a moment too early
    monkeypatch.setattr(second, "_all_begun", lambda: next(begun))
    held = first.propose()

    def wait(seconds):
        drivers.finish(first, held)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=wait))
    assert second.propose() is None

    assert [t.state for t in drivers.trials()] == [TrialState.COMPLETE, TrialState.FAIL]
    assert "as many trials as asked for" in drivers.trials()[1].user_attrs["withdrawn"]
    assert [record.number for record in second.records] == [0]
    assert "all 1 trials are done" in second.stopped


def test_candidate_of_a_lost_driver_is_evaluated_again_by_one_other(tmp_path, monkeypatch):
    drivers = Drivers(tmp_path, trials=2, seeds=(1, 2, 3))
    dead, second, third = drivers.drivers
    lost = dead.propose()
    drivers.finish(second, second.propose())
    wait = SimpleNamespace(sleep=lambda seconds: setattr(drivers.clock, "now", 61.0))
    monkeypatch.setattr(module, "time", wait)

    again = second.propose()  # waits for the dead one

    assert again.candidate == lost.candidate
    assert again.number != lost.number
    retried = drivers.trials()[again.number]
    assert retried.user_attrs["retry_of"] == lost.number
    assert retried.user_attrs["attempts"] == 1
    assert drivers.finish(dead, lost) is None  # it was only asleep
    drivers.finish(second, again)
    assert third.propose() is None
    assert [r.number for r in third.records] == [1, again.number]
    assert drivers.evaluator.calls.count(lost.candidate.key) == 2


def test_candidate_that_kills_every_driver_is_given_up(tmp_path, monkeypatch):
    drivers = Drivers(tmp_path, trials=9, seeds=range(5))
    keys = []
    monkeypatch.setattr(module.Session, "lost", lambda self, driver: driver < self.driver)
    for driver in drivers.drivers[: module.ATTEMPTS + 1]:
        keys.append(driver.propose().candidate.key)  # and dies
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_unpruned_network_is_one_trial_of_the_first(two):
    first, second = two.drivers
    dense = two.evaluator(two.problem.space.dense())
    ours, theirs = first.record_dense(dense), second.record_dense(dense)
    assert ours == theirs
    assert [r.number for r in read_records(first.study, two.problem.space)] == [0]
    assert second.propose().number == 2
    assert len(second.records) == 1


def test_own_trials_go_on_under_their_number_unless_another_took_them(tmp_path):
    drivers = Drivers(tmp_path, trials=4)
    first, second = drivers.drivers
    held, other = first.propose(), second.propose()

    again = StudyDriver(first.study, drivers.problem, limits=first.limits, session=first.session)
    assert again.propose() == held
    assert again.propose().number not in (held.number, other.number)


def test_candidate_that_another_driver_finished_just_now_is_copied(two, monkeypatch):
    first, second = two.drivers
    held = first.propose()
    study, ask = second.study, second.study.ask
    with monkeypatch.context() as patch:
        patch.setattr(module.Drafts, "get_all_trials", lambda self, *args, **kwargs: [])
        patch.setattr(type(second._storage.kept), "get_n_trials", lambda self, study_id: 0)
        asked = [study.ask(second._distributions)]

    def late(distributions):
        if not asked:
            return ask(distributions)
        two.finish(first, held)  # after the last look
        return asked.pop()

    monkeypatch.setattr(study, "ask", late)
    two.finish(second, second.propose())

    assert two.evaluator.calls.count(held.candidate.key) == 1
    assert [t.user_attrs.get("duplicate_of") for t in two.trials()] == [None, held.number, None]
