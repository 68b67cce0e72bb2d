import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import autoprune
from autoprune.cli.devices import devices
from autoprune.errors import UnknownNameError
from autoprune.latency.profile import load_profile, profile_names

PAGE = Path(autoprune.__file__).parents[1] / "docs" / "devices.md"


def run(*arguments):
    app = typer.Typer()
    app.command()(devices)
    return CliRunner().invoke(app, list(arguments))


def test_all_profiles_are_listed_with_their_errors_within_100_columns():
    lines = run().output.splitlines()
    for name in profile_names():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        profile = load_profile(name)
        assert profile.error_text in line
        assert line.split()[-1] == profile.quality
    assert max(len(line.rstrip()) for line in lines) <= 100


def test_aliases_are_listed():
    assert "jetson = jetson_nano" in run().output


def test_one_profile_is_shown_with_its_sources(board):
    output = run(board).output
    assert "made/up" in output
    assert load_profile(board).error_text in output
    assert "copy" in output


def test_json_of_all_has_the_facts_of_every_profile():
    everything = json.loads(run("--json").output)
    assert [line["name"] for line in everything] == profile_names()
    for line in everything:
        profile = load_profile(line["name"])
        assert line["held_out_mape"] == profile.provenance.held_out.mape
        assert line["quality"] in ("strong", "moderate", "coarse")
        assert line["measurements"] >= 8
        assert all("@" in source for source in line["source"])
        assert all(line["licence"])
        assert {"device", "runtime", "precision", "kind", "within_10", "spearman"} <= set(line)
        assert isinstance(line["capabilities"], list)


def test_json_of_one_is_the_profile_without_texts_of_trees():
    one = json.loads(run("jetson", "--json").output)
    assert one["name"] == "jetson_nano"
    assert one["provenance"]["sample_count"] >= 8


@pytest.mark.parametrize("name", profile_names())
def test_no_shipped_profile_is_worse_than_30_percent_or_copies_a_table(name):
    profile = load_profile(name)
    assert profile.provenance.held_out.mape <= 0.3
    assert profile.predictor.kind != "table"
    assert sum(len(part.content()) for part in profile.predictor.attachments) <= 300_000


def test_page_has_the_table_that_the_command_prints():
    page = PAGE.read_text(encoding="utf-8")
    table = run("--markdown").output
    listed = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert listed == profile_names()
    assert table in page


def test_unknown_name_is_our_error():
    result = run("jetsn")
    assert isinstance(result.exception, UnknownNameError)
    with pytest.raises(UnknownNameError, match="did you mean 'jetson'"):
        raise result.exception
