from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from autoprune.errors import RunError
from autoprune.report.data import TRIAL_COLUMNS, ChosenNetwork, trial_table


def test_a_table_has_the_documented_types_even_when_empty(rows):
    for table in (trial_table(rows), trial_table([])):
        assert {name: str(kind) for name, kind in table.dtypes.items()} == TRIAL_COLUMNS


def test_what_a_row_leaves_out_is_missing(rows):
    failed = trial_table(rows).set_index("number").loc[3]

    assert failed["reason"] == "out of memory"
    assert not failed["on_front"]
    assert all(pd.isna(failed[name]) for name in ("loss", "accuracy", "latency_ms", "macs"))


def test_a_row_with_an_unknown_column_or_without_status_is_refused():
    with pytest.raises(RunError, match=r"unknown columns \['speed'\] and lacks \['status'\]"):
        trial_table([{"number": 1, "speed": 3.0}])


def test_undecodable_text_becomes_printable():
    row = {"number": 0, "status": "failed", "reason": "no file \udcff"}

    assert trial_table([row])["reason"][0] == "no file \\udcff"


def test_the_front_is_sorted_and_the_chosen_row_found(data):
    assert list(data.front["number"]) == [0, 2, 4]
    assert list(data.failed["number"]) == [3]
    assert data.chosen_facts.latency_ms == 8.0
    assert data.chosen_facts.test_accuracy == 0.89


def test_all_faults_come_at_once(data):
    with pytest.raises(RunError) as error:
        dataclasses.replace(
            data, chosen=ChosenNetwork(trial=3, widths=()), hypervolume=data.hypervolume[:2]
        )
    assert "chosen trial 3 is not a complete trial" in str(error.value)
    assert "got 2 for 5 trials" in str(error.value)


def test_a_table_without_its_columns_is_refused(data):
    with pytest.raises(RunError, match="lacks loss, seconds"):
        dataclasses.replace(data, trials=data.trials.drop(columns=["loss", "seconds"]))
