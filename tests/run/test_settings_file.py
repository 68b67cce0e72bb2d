import re

import pytest
import yaml

from autoprune.errors import AutopruneError, RunError, SettingsError
from autoprune.run.directory import ModelRecord, RunDirectory, RunRecord, now, versions
from autoprune.run.settings import RunSettings
from autoprune.run.settings_file import (
    _PARTS,
    assigned,
    explanations,
    merged,
    read_settings,
    settings_text,
)
from autoprune.strategy.settings import load_space_settings
from autoprune.testing.profiles import made_up_profile

GIVEN = {"model": "digits", "data": "digits", "device": "jetson"}


def read(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    return read_settings(tmp_path / "run.yaml")


def test_what_is_written_gives_the_defaults(tmp_path):
    values = read(tmp_path, settings_text(GIVEN))
    assert values == GIVEN
    assert RunSettings.checked(values) == RunSettings.checked(GIVEN)


def test_every_default_that_is_commented_out_is_the_default(tmp_path):
    text = re.sub(r"^  # (\w+): ", r"  \1: ", settings_text(GIVEN), flags=re.MULTILINE)
    content = yaml.safe_load(text)["search"]
    assert list(content) == list(RunSettings.model_fields)
    assert RunSettings.checked(content) == RunSettings.checked(GIVEN)


def test_every_setting_is_explained():
    told = explanations()
    assert list(told) == list(RunSettings.model_fields)
    for name, text in told.items():
        assert text.endswith("."), name
        assert "`" not in text
        assert "None" not in text
    assert set(_PARTS) <= set(told)
    assert max(map(len, settings_text(GIVEN).splitlines())) <= 100


@pytest.mark.parametrize(
    "values",
    [
        {"budget_ms": 10.5, "trials": 7, "racing": False},
        {"objective": ["accuracy", "latency", "macs"], "max_params": "1.5M"},
        {"max_latency_ms": {"jetson_orin_nano": 3.0}, "device": "jetson"},
        {"sampler": "tpe", "sampler_options": {"multivariate": True}},
        {"data": "image-folder:photos?size=160", "weights": "a b: c #.pt", "study_name": "yes"},
        {"device": "~", "cache": "C:\\scores"},
    ],
)
def test_given_values_come_back_as_they_were(tmp_path, values):
    whole = GIVEN | values
    assert read(tmp_path, settings_text(whole)) == whole


def test_a_run_is_a_settings_file_too(tmp_path):
    settings = RunSettings.checked(GIVEN | {"trials": 7, "sampler_options": {}})
    record = RunRecord(
        created=now(),
        settings=settings,
        model=ModelRecord(name="digits", weights_sha256=None),
        space=load_space_settings("default"),
        profile=made_up_profile(),
        versions=versions(),
    )
    RunDirectory(tmp_path, record).write_record()
    for path in (tmp_path, tmp_path / "run.json"):
        assert RunSettings.checked(read_settings(path)) == settings

    unnamed = record.model_copy(update={"settings": settings.model_copy(update={"model": None})})
    RunDirectory(tmp_path, unnamed).write_record()
    with pytest.raises(SettingsError, match="was given its model as an object in Python"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nsearch:\n  trails: 3\n", "no setting named 'trails'; did you mean 'trials'"),
        ("version: 1\nserach:\n  trials: 3\n", "no key named 'serach'; did you mean 'search'"),
        ("version: 1\ntrials: 3\n", "put it under 'search:'"),
        ("version: 2\nsearch:\n", "expected 'version: 1', got 2"),
        ("search:\n  trials: 3\n", "expected 'version: 1', got None"),
        ("version: 1\nsearch: 3\n", "expected settings by name under 'search:'"),
        ("version: 1\nsearch:\n  seed: 1\n  seed: 2\n", "given twice: seed"),
        ("version: [", "not valid YAML"),
        ("- 1", "expected a mapping"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, text, message):
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings(tmp_path / "absent.yaml")
    with pytest.raises(RunError, match=r"has no run\.json"):
        read_settings(tmp_path)


def test_empty_sections_and_nulls_are_defaults(tmp_path):
    assert read(tmp_path, "version: 1\n") == {}
    assert read(tmp_path, "version: 1\nsearch:\n  budget_ms: null\n  seed: 3\n") == {"seed": 3}


def test_values_are_those_of_yaml():
    texts = ["search.trials=50", "racing=false", "objective=[accuracy, macs]", "weights=null"]
    assert assigned(texts) == {
        "trials": 50,
        "racing": False,
        "objective": ["accuracy", "macs"],
        "weights": None,
    }
    assert assigned(["search.study_storage=redis://host:1/0?a=b"]) == {
        "study_storage": "redis://host:1/0?a=b"
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials", "--set takes NAME=VALUE such as search.trials=50, got 'trials'"),
        ("=3", "--set takes NAME=VALUE"),
        ("search.trails=3", "no setting named 'trails'; did you mean 'trials'"),
        ("search.objective=[", "not valid YAML"),
        ("search.seed.x=3", "seed has no entries"),
    ],
)
def test_wrong_assignments(text, message):
    with pytest.raises(AutopruneError) as caught:
        assigned([text])
    assert message in str(caught.value)


def test_the_later_of_two_assignments_counts():
    assert assigned(["trials=1", "trials=2"]) == {"trials": 2}
    assert assigned(["sampler_options.a=1", "sampler_options.b=2"]) == {
        "sampler_options": {"a": 1, "b": 2}
    }


def test_others_come_before_what_was_there():
    assert merged({"seed": 1, "trials": 2}, {"seed": 3}) == {"seed": 3, "trials": 2}
