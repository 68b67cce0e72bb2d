import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autoprune.execution.drafts import Drafts
from autoprune.run.journal import Journal, JournalFile

FLOAT = optuna.distributions.FloatDistribution(0.0, 1.0)
BOOL = optuna.distributions.CategoricalDistribution([False, True])


@pytest.fixture(params=["memory", "journal", "journal at once", "sqlite"])
def kept(request, tmp_path):
    if request.param == "memory":
        return InMemoryStorage()
    if request.param == "journal":
        return JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    if request.param == "journal at once":
        return Journal(JournalFile(tmp_path / "study.journal"))
    return optuna.storages.get_storage(f"sqlite:///{tmp_path}/study.db")


def studies(kept, sampler=None):
    optuna.create_study(storage=kept, study_name="s", sampler=sampler)
    return (
        optuna.load_study(storage=storage, study_name="s", sampler=sampler)
        for storage in (kept, Drafts(kept))
    )


def test_nobody_sees_a_trial_before_it_is_whole(kept):
    plain, drafting = studies(kept)

    trial = drafting.ask({"x": FLOAT, "drop": BOOL})
    trial.set_user_attr("note", "user")
    drafting._storage.set_trial_system_attr(trial._trial_id, "note", [1, 2])

    assert plain.get_trials() == []
    assert [t.params for t in drafting.get_trials()] == [trial.params]
    trial_id, number = drafting._storage.publish(drafting._study_id)
    (published,) = plain.get_trials()
    assert (published._trial_id, published.number, number) == (trial_id, 0, 0)
    assert published.state == TrialState.RUNNING
    assert (published.params, published.distributions) == (trial.params, {"x": FLOAT, "drop": BOOL})
    assert (published.user_attrs, published.system_attrs) == ({"note": "user"}, {"note": [1, 2]})
    assert drafting.get_trials() == [published]


def test_number_is_another_where_another_process_was_faster(kept):
    plain, drafting = studies(kept)
    first = drafting.ask({"x": FLOAT})
    plain.ask({"x": FLOAT})
    _, number = drafting._storage.publish(drafting._study_id)
    assert (first.number, number) == (0, 1)


def test_trial_that_was_put_in_line_is_no_draft(kept):
    plain, drafting = studies(kept)
    plain.enqueue_trial({"x": 0.25})
    trial = drafting.ask({"x": FLOAT})
    assert not drafting._storage.drafted(trial._trial_id)
    drafting.tell(trial, 1.0)
    assert [t.params for t in plain.get_trials()] == [{"x": 0.25}]


@pytest.mark.parametrize("make", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler])
def test_samplers_propose_as_they_do_without(make):
    def values(storage):
        study = optuna.create_study(storage=storage, sampler=make(seed=1))
        for _ in range(30):
            trial = study.ask({"x": FLOAT, "drop": BOOL})
            number = trial.number
            if isinstance(storage, Drafts):
                _, number = storage.publish(study._study_id)
            study.tell(number, trial.params["x"])
        return [(t.params, t.system_attrs) for t in study.get_trials()]

    assert values(Drafts(InMemoryStorage())) == values(InMemoryStorage())


def test_many_attributes_are_those_that_were_set_one_by_one(kept):
    plain, drafting = studies(kept)
    attributes = {"accuracy": 0.5, "rungs": [[1.0, 2]], "note": "b"}
    storage = drafting._storage
    trial = drafting.ask({"x": FLOAT})
    storage.set_trial_user_attrs(trial._trial_id, {"note": "a", "draft": True})
    trial_id, _ = storage.publish(drafting._study_id)
    storage.set_trial_user_attrs(trial_id, attributes)
    (other,) = plain.get_trials()
    assert other.user_attrs == {"draft": True} | attributes
    assert storage.get_trial(trial_id).user_attrs == other.user_attrs
    drafting.tell(other.number, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_user_attrs(trial_id, {"late": True})
