import json
import os

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.run.journal import Journal, JournalFile, cut_half_line

LINES = b'{"op_code":0}\n{"op_code":1}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.journal"


def test_optuna_reads_what_was_appended_and_the_other_way_round(path):
    ours, theirs = JournalFile(path), JournalFileBackend(str(path))
    ours.append_logs([{"a": 1}, {"b": [2.5]}])
    theirs.append_logs([{"c": None}])
    assert list(theirs.read_logs(0)) == [{"a": 1}, {"b": [2.5]}, {"c": None}]
    assert list(ours.read_logs(2)) == [{"c": None}]
    assert list(path.parent.iterdir()) == [path]  # the lock is gone


@pytest.mark.parametrize("cut", range(1, len(LINES)))
def test_truncated_journal_is_cut_back_to_its_last_whole_line_and_no_further(path, cut):
    path.write_bytes(LINES[:cut])
    gone = JournalFile(path).mend()
    whole = LINES[:cut].rfind(b"\n") + 1
    assert path.read_bytes() == LINES[:whole]
    assert gone == cut - whole


def test_last_line_that_is_no_json_is_no_whole_line_but_one_before_stays(path):
    path.write_bytes(LINES + b"\0\0\0\n")
    assert JournalFile(path).mend() == 4
    assert path.read_bytes() == LINES
    path.write_bytes(b"nonsense\n" + LINES)
    assert JournalFile(path).mend() == 0


def test_whole_journals_and_empty_ones_stay(path):
    for content in (b"", LINES):
        path.write_bytes(content)
        assert JournalFile(path).mend() == cut_half_line(path) == 0
        assert path.read_bytes() == content


def test_what_another_process_left_of_a_line_is_cut_before_the_next(path):
    journal = JournalFile(path)
    journal.append_logs([{"a": 1}])
    with path.open("ab") as file:
        file.write(b'{"hal')
    journal.append_logs([{"b": 2}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}]


def test_line_that_does_not_fit_on_the_disk_leaves_nothing_behind(path, monkeypatch):
    study = optuna.create_study(storage=JournalStorage(JournalFile(path)))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    trial = study.ask()
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            study.tell(trial, 0.5)
    assert path.read_bytes() == before
    study.tell(trial, 0.5)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    again = optuna.load_study(storage=JournalStorage(JournalFile(path)), study_name=None)
    assert [trial.number for trial in again.trials] == [0, 1, 2, 3]


def test_trials_end_on_the_disk_and_what_is_before_does_not_wait_for_it(path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(path.read_bytes()), sync(file)))
    study = optuna.create_study(storage=JournalStorage(JournalFile(path)))
    before = len(synced)

    trial = study.ask()
    for number in range(5):
        trial.set_user_attr(f"detail {number}", number)
    study.tell(trial, 1.0)

    (ended,) = synced[before:]
    assert ended.count(b"detail") == 5
    assert ended == path.read_bytes()

    study.add_trial(optuna.trial.create_trial(value=2.0))  # which begins and ends in one line
    assert synced[before + 1 :] == [path.read_bytes()]


def test_attributes_set_at_once_are_read_by_optuna_and_by_another_process(path):
    ours = Journal(JournalFile(path))
    study = optuna.create_study(storage=ours, study_name="s")
    trial = study.ask()
    lines = path.read_text().count("\n")
    ours.set_trial_user_attrs(trial._trial_id, {"a": 1, "b": [2.5]})
    assert path.read_text().count("\n") == lines + 2
    theirs = optuna.load_study(
        storage=JournalStorage(JournalFileBackend(str(path))), study_name="s"
    )
    assert theirs.trials[0].user_attrs == study.trials[0].user_attrs == {"a": 1, "b": [2.5]}
