import json

import pytest
import typer
from typer.testing import CliRunner

from autoprune.cli.devices import devices
from autoprune.errors import UnknownNameError
from autoprune.latency.profile import load_profile, profile_names


def run(*arguments):
    app = typer.Typer()
    app.command()(devices)
    return CliRunner().invoke(app, list(arguments))


def test_all_profiles_are_listed_with_their_errors():
    output = run().output
    for name in profile_names():
        (line,) = [line for line in output.splitlines() if line.split()[:1] == [name]]
        assert load_profile(name).error_text in line


def test_one_profile_is_shown_with_its_sources(board):
    output = run(board).output
    assert "made/up" in output
    assert load_profile(board).error_text in output
    assert "copy" in output


def test_json_of_all_and_of_one():
    everything = json.loads(run("--json").output)
    assert [profile["name"] for profile in everything] == profile_names()
    one = json.loads(run("jetson", "--json").output)
    assert one["name"] == "jetson_nano"
    assert one["provenance"]["sample_count"] >= 8


def test_unknown_name_is_our_error():
    result = run("jetsn")
    assert isinstance(result.exception, UnknownNameError)
    with pytest.raises(UnknownNameError, match="did you mean 'jetson'"):
        raise result.exception
