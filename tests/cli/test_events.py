import json

import pandas as pd
import pytest

from autoprune.cli.events import _plain
from autoprune.cli.main import main

QUICK = ("--executor", "inline", "--sampler", "random", "--trials", "3", "-o", "run")


pytestmark = pytest.mark.usefixtures("no_onnx_export")


def test_every_line_is_an_event_and_trials_are_those_of_the_table(own, board, tmp_path, capsys):
    arguments = [*own, "--device", board, *QUICK, "--progress", "jsonl"]
    assert main(["search", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    events = [json.loads(line) for line in out.splitlines()]

    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind != "note"] == ["start", *["trial"] * 3, "end"]
    start, end = events[kinds.index("start")], events[-1]
    assert start["trials"] == 3
    assert start["run"] == end["directory"] == str(tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run" / "trials.parquet").set_index("number")
    for event in events:
        if event["event"] == "trial":
            row = table.loc[event["number"]]
            assert event["accuracy"] == row["accuracy"]
            assert event["latency_ms"] == row["latency_ms"]
            assert event["status"] == row["status"]
    assert end["best"]["trial"] in table.index


def test_result_as_json_and_lines_of_json_exclude_each_other(own, board, capsys):
    arguments = [*own, "--device", board, *QUICK, "--progress", "jsonl", "--json"]
    assert main(["search", *arguments]) == 2
    assert "leave --json out" in capsys.readouterr().err


def test_numbers_that_json_lacks_are_null():
    assert _plain({"a": float("nan"), "b": [1.0, float("inf")], "c": (2,)}) == {
        "a": None,
        "b": [1.0, None],
        "c": [2],
    }
