import os

import optuna
import pytest

from autoprune.errors import RunError, SettingsError
from autoprune.run.settings import RunSettings
from autoprune.run.storage import (
    STORAGE_VARIABLE,
    checked_storage,
    masked,
    open_storage,
    storage_errors,
    whole_storage,
)

SECRET = "postgresql://ann:s3c@ret:x@db.example:5432/studies"
HIDDEN = "postgresql://ann:***@db.example:5432/studies"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SECRET, HIDDEN),
        ("postgresql+psycopg2://ann@db/studies", "postgresql+psycopg2://ann@db/studies"),
        ("redis://:s3cret@cache:6379/0", "redis://:***@cache:6379/0"),
        (
            "postgresql://db/studies?user=ann&sslpassword=s3cret&sslmode=require",
            "postgresql://db/studies?user=ann&sslpassword=***&sslmode=require",
        ),
        ("sqlite:////data/study.db", "sqlite:////data/study.db"),
        ("journal:/data/study.journal", "journal:/data/study.journal"),
    ],
)
def test_passwords_are_hidden_and_nothing_else(url, shown):
    assert masked(url) == shown
    assert checked_storage(url) == url


def test_files_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checked_storage("journal:a.journal") == f"journal:{tmp_path}/a.journal"
    assert checked_storage("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize("url", ["", "a.db", "sqlite://", "mysql://ann:s3cret@db/x", "journal:"])
def test_other_forms_are_refused_without_their_password(url):
    with pytest.raises(SettingsError, match=r"expected sqlite:///FILE.*journal:FILE") as caught:
        checked_storage(url)
    assert "s3cret" not in str(caught.value)


def test_settings_never_give_away_the_password(board):
    settings = RunSettings.checked({"device": board, "study_storage": SECRET})
    assert settings.study_storage == SECRET
    for text in (repr(settings), settings.model_dump_json(), repr(settings.model_dump())):
        assert "s3c@ret" not in text
    assert settings.model_dump()["study_storage"] == HIDDEN
    assert settings.with_limits({"trials": 7}).study_storage == SECRET


def test_password_of_a_run_that_goes_on_comes_from_the_user(monkeypatch):
    with pytest.raises(RunError, match=f"{STORAGE_VARIABLE}") as caught:
        whole_storage(HIDDEN, None)
    assert "s3c@ret" not in str(caught.value)
    assert whole_storage(HIDDEN, SECRET) == SECRET
    monkeypatch.setenv(STORAGE_VARIABLE, SECRET)
    assert whole_storage(HIDDEN, None) == SECRET
    assert whole_storage("journal:/a", None) == "journal:/a"  # nothing is missing there
    with pytest.raises(SettingsError, match="goes on where its study is"):
        whole_storage(HIDDEN, "postgresql://ann:s3c@ret@elsewhere/studies")


def test_journal_ending_in_half_a_line_is_mended_with_a_note(tmp_path):
    url, notes = f"journal:{tmp_path}/study.journal", []
    study = optuna.create_study(storage=open_storage(url, say=notes.append), study_name="s")
    study.ask()
    assert notes == []
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op')
    optuna.load_study(storage=open_storage(url, say=notes.append), study_name="s")
    assert len(notes) == 1
    assert "cut off (4 bytes)" in notes[0]


def test_sqlite_is_shared(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    first = optuna.create_study(storage=open_storage(url, say=print), study_name="s")
    second = optuna.load_study(storage=open_storage(url, say=print), study_name="s")
    first.add_trial(optuna.trial.create_trial(value=1.0))
    assert [trial.value for trial in second.trials] == [1.0]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@127.0.0.1:9/studies",
        "sqlite:////proc/no/such/folder/study.db",
        "journal:/proc/no/such/folder/study.journal",
    ],
)
def test_storage_that_cannot_be_opened_is_one_line_without_a_password(url):
    with pytest.raises(RunError, match="cannot open the study storage") as caught:
        open_storage(url, say=print)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_all_storages_are_known():
    redis = pytest.importorskip("redis")
    kinds = storage_errors()
    assert all(issubclass(kind, kinds) for kind in (OSError, redis.exceptions.ConnectionError))
    assert issubclass(optuna.exceptions.StorageInternalError, kinds)
    assert os.environ.get(STORAGE_VARIABLE) is None
