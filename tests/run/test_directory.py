import json
import os

import pytest
from optuna.samplers import RandomSampler

from autoprune.errors import RunError
from autoprune.run.directory import ModelRecord, RunDirectory, RunRecord, new_folder, now, versions
from autoprune.run.settings import RunSettings
from autoprune.strategy.settings import load_space_settings
from autoprune.testing.profiles import made_up_profile


@pytest.fixture
def run(tmp_path, board):
    record = RunRecord(
        created=now(),
        settings=RunSettings.checked({"device": board, "trials": 3}),
        model=ModelRecord(name="digits", weights_sha256=None),
        space=load_space_settings("default"),
        profile=made_up_profile(),
        versions=versions(),
    )
    directory = RunDirectory(tmp_path, record)
    directory.write_record()
    return directory


def changed(run, **values):
    file = run.path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_opens_what_was_written(run):
    assert RunDirectory.open(run.path).record == run.record


def test_other_version_says_who_wrote_it(run):
    changed(run, version=7, versions={"autoprune": "3.2.1"})
    with pytest.raises(RunError, match=r"version 7, written by autoprune 3\.2\.1.*reads version 1"):
        RunDirectory.open(run.path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}', b"\xff\xfe"])
def test_damaged_record_is_refused(run, content):
    raw = content if isinstance(content, bytes) else content.encode()
    (run.path / "run.json").write_bytes(raw)
    with pytest.raises(RunError, match=r"run\.json (cannot be read|is no run)"):
        RunDirectory.open(run.path)


def test_unknown_setting_in_the_record_is_refused(run):
    changed(run, settings={"device": "x", "colour": "red"})
    with pytest.raises(RunError, match=r"(?s)is damaged.*colour"):
        RunDirectory.open(run.path)


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is no folder"):
        RunDirectory.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"has no run\.json"):
        RunDirectory.open(tmp_path)


def test_study_survives_a_process_that_died_while_writing(run):
    study = run.study(RandomSampler(seed=0), say=print)
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=3)
    journal = run.path / "study.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "half')
    os.symlink(journal, f"{journal}.lock")  # what its process held

    again = run.study(RandomSampler(seed=0), say=print)
    again.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=1)

    assert len(run.study(RandomSampler(seed=0), say=print).trials) == 4


def test_damaged_study_is_an_error_and_not_a_traceback(run):
    (run.path / "study.journal").write_text('nonsense\n{"op_code": 0}\n')
    with pytest.raises(RunError, match=r"study\.journal is damaged"):
        run.study(RandomSampler(seed=0), say=print)


def test_one_process_at_a_time(run):
    with (
        run.locked(),
        pytest.raises(RunError, match="another process is searching"),
        RunDirectory.open(run.path).locked(),
    ):
        pass
    with run.locked():  # it was given back
        pass


def test_resume_command_is_short_and_quoted(run, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    assert run.resume_command == f"autoprune search --resume {run.path.name}"
    spaced = RunDirectory(run.path.parent / "my run", run.record)
    assert spaced.resume_command == "autoprune search --resume 'my run'"


def test_new_folder_is_named_after_time_and_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = new_folder(None, "torchvision:resnet18(num_classes=10)")
    assert folder.parent == tmp_path / "runs"
    assert folder.name.endswith("-torchvision-resnet18-num-classes-10")
    assert list(folder.iterdir()) == []


def test_new_folder_refuses_one_that_holds_something(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match=r"not empty \(it holds notes\.txt\); empty it"):
        new_folder(tmp_path, "digits")
    (tmp_path / "notes.txt").rename(tmp_path / "run.json")
    with pytest.raises(RunError, match="continue it with --resume"):
        new_folder(tmp_path, "digits")


def test_new_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write the output folder .*Not a directory"):
        new_folder(tmp_path / "file" / "run", "digits")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_new_folder_in_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write the output folder"):
        new_folder(tmp_path / "run", "digits")
