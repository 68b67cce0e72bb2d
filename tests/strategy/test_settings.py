import pydantic
import pytest

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.resources import data_folder
from autoprune.strategy.settings import SpaceSettings, load_space_settings

SHIPPED = sorted(path.stem for path in data_folder("search_spaces").glob("*.yaml"))


def write(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_spaces_are_shipped_and_begin_with_the_command_that_uses_them():
    assert {"amc", "conservative", "default", "metapruning", "transformer", "width_only"} == set(
        SHIPPED
    )
    for name in SHIPPED:
        first = (data_folder("search_spaces") / f"{name}.yaml").read_text().splitlines()[0]
        assert first.startswith("# autoprune search ")
        assert first.endswith(f"--space {name}")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_load_and_name_every_key(name):
    settings = load_space_settings(name)
    # What a user copies has to show every key there is.
    assert settings.model_fields_set == set(SpaceSettings.model_fields)


def test_default_file_states_the_defaults_of_the_model():
    assert load_space_settings("default") == SpaceSettings(version=1)


def test_a_file_is_read_by_path_and_by_string(tmp_path):
    path = write(tmp_path, "version: 1\nmax_ratio: 0.25\ngroups:\n  'layer1.*': {multiple: 4}\n")
    settings = load_space_settings(path)
    assert settings == load_space_settings(str(path))
    assert settings.max_ratio == 0.25
    assert settings.groups["layer1.*"].multiple == 4
    assert settings.groups["layer1.*"].freeze is None


def test_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'default'") as caught:
        load_space_settings("defualt")
    assert "width_only" in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"absent\.yaml: cannot be read"):
        load_space_settings(tmp_path / "absent.yaml")


def test_all_faults_come_at_once_with_the_file(tmp_path):
    path = write(
        tmp_path,
        """
version: 2
max_ratio: 1.5
minimum_units: 0
multiple: gpu
dept: true
max_dropped: "0.5"
groups:
  "conv*": {max_ration: 0.5, freeze: 1}
blocks:
  "layer*": {max_ratio: 0.5}
""",
    )
    with pytest.raises(SettingsError) as caught:
        load_space_settings(path)
    message = str(caught.value)
    assert message.startswith(f"search space {path}:\n")
    expected = [
        "version: ",
        "max_ratio: should be less than 1, got 1.5",
        "minimum_units: should be greater than or equal to 1, got 0",
        "multiple: should be 'device' or a whole number of channels, at least 1, got 'gpu'",
        "dept: unknown key; did you mean 'depth'?",
        "max_dropped: should be a valid number, got '0.5'",
        "groups.conv*.max_ration: unknown key; did you mean 'max_ratio'?",
        "groups.conv*.freeze: should be a valid boolean, got 1",
        "blocks.layer*.max_ratio: unknown key",
        "blocks.layer*.freeze: missing",
    ]
    lines = message.splitlines()[1:]
    assert len(lines) == len(expected)
    for part in expected:
        assert sum(line.startswith(f"  {part}") for line in lines) == 1, part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping such as 'version: 1', got NoneType"),
        ("- 1", "got list"),
        ("version: [", "not valid YAML"),
        ("max_ratio: 0.5", "version: missing"),
        ("version: 1\nmax_ratio: 0.5\nmax_ratio: 0.6", "given twice: max_ratio"),
        ("version: 1\nmultiple: true", "multiple: should be 'device' or a whole number"),
        ("version: 1\nmax_ratio: -0.1", "max_ratio: should be greater than or equal to 0"),
        ("version: 1\nmax_ratio: .nan", "max_ratio: "),
    ],
)
def test_malformed_files(tmp_path, text, message):
    with pytest.raises(SettingsError) as caught:
        load_space_settings(write(tmp_path, text))
    assert message in str(caught.value)


def test_settings_cannot_be_changed():
    settings = SpaceSettings(version=1)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.max_ratio = 0.1
