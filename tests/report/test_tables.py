from __future__ import annotations

import dataclasses
import io
import json

import pandas as pd

from autoprune.report.data import FinetunedFacts
from autoprune.report.tables import FINETUNED_COLUMNS, FRONT_COLUMNS, write_tables


def test_trials_come_back_as_they_were(data, tmp_path):
    write_tables(data, tmp_path)
    trials = pd.read_parquet(tmp_path / "trials.parquet")

    assert tuple(trials.pop("hypervolume")) == data.hypervolume
    pd.testing.assert_frame_equal(trials, data.trials)
    assert trials.attrs == {"format": "autoprune-trials", "version": 1}


def test_the_front_as_csv_has_a_row_per_point(data, tmp_path):
    write_tables(data, tmp_path)
    content = (tmp_path / "front.csv").read_bytes().decode()
    front = pd.read_csv(io.StringIO(content))

    assert tuple(front.columns) == FRONT_COLUMNS
    assert list(front["trial"]) == [0, 2, 4]
    assert list(front["test_accuracy"].notna()) == [False, True, False]
    assert "\r" not in content


def test_the_front_as_json_says_what_it_was_measured_against(data, tmp_path):
    write_tables(data, tmp_path)
    front = json.loads((tmp_path / "front.json").read_text())

    assert (front["format"], front["version"]) == ("autoprune-front", 1)
    assert front["profile"]["error"] == 0.1
    assert front["budget_ms"] == 10.0
    assert front["dense"]["latency_ms"] == 16.0
    assert (front["chosen"], front["hypervolume"]) == (2, 0.66)
    assert front["points"][1] == {
        "trial": 2,
        "accuracy": 0.9,
        "loss": 1 - 0.9,
        "latency_ms": 8.0,
        "macs": 1_000_000,
        "params": 2_000,
        "test_accuracy": 0.89,
        "samples": None,
        "loss_stderr": None,
    }
    assert front["points"][0]["test_accuracy"] is None


def test_the_front_says_what_fine_tuning_made_of_it(data, tmp_path):
    tuned = {2: FinetunedFacts(accuracy=0.95, test_accuracy=0.94),
             4: FinetunedFacts(accuracy=0.97, test_accuracy=None)}  # fmt: skip
    write_tables(dataclasses.replace(data, finetuned=tuned), tmp_path)

    front = pd.read_csv(tmp_path / "front.csv")
    assert tuple(front.columns) == (*FRONT_COLUMNS, *FINETUNED_COLUMNS)
    assert front["finetuned_accuracy"].fillna(0).tolist() == [0, 0.95, 0.97]
    assert front["finetuned_test_accuracy"].fillna(0).tolist() == [0, 0.94, 0]
    assert front["accuracy"].tolist() == data.front["accuracy"].tolist()
    points = json.loads((tmp_path / "front.json").read_text())["points"]
    assert [point["finetuned_accuracy"] for point in points] == [None, 0.95, 0.97]


def test_a_run_without_trials_has_empty_tables(empty, tmp_path):
    write_tables(dataclasses.replace(empty, budget_ms=None), tmp_path)

    assert len(pd.read_parquet(tmp_path / "trials.parquet")) == 0
    assert (tmp_path / "front.csv").read_text() == ",".join(FRONT_COLUMNS) + "\n"
    front = json.loads((tmp_path / "front.json").read_text())
    assert (front["points"], front["chosen"], front["budget_ms"]) == ([], None, None)


def test_the_same_data_give_the_same_bytes(data, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tables(data, tmp_path / name)

    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["front.csv", "front.json", "trials.parquet"]
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in files
    )
