"""The tables a run leaves behind: ``trials.parquet``, ``front.csv`` and ``front.json``.

Every file is written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pandas as pd

from autoprune.files import atomic_path, write_atomically
from autoprune.report.data import TRIAL_COLUMNS, ReportData

#: Version of all three tables; it changes when a column is renamed, removed or given a new meaning.
VERSION = 1
#: Columns of ``front.csv`` and fields of a point in ``front.json``; what else the objectives and
#: limits of a search name comes behind them, then :data:`FINETUNED_COLUMNS`.
FRONT_COLUMNS = (
    *("trial", "accuracy", "loss", "latency_ms", "macs", "params", "test_accuracy"),
    *("samples", "loss_stderr"),
)
#: Further columns once a network of the run was fine-tuned; empty for the others.
FINETUNED_COLUMNS = ("finetuned_accuracy", "finetuned_test_accuracy")


def write_tables(data: ReportData, directory: str | os.PathLike[str]) -> None:
    """Write ``trials.parquet``, ``front.csv`` and ``front.json`` into an existing directory."""
    folder = Path(directory)
    write_trials(data, folder / "trials.parquet")
    write_front_csv(data, folder / "front.csv")
    write_front_json(data, folder / "front.json")


def write_trials(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the trial table as parquet.

    Format and version lie in the file's metadata; ``pandas.read_parquet(path).attrs`` has them.

    Args:
        data: The run; its hypervolume after each trial becomes a column of its own.
        path: The file to write.
    """
    table = _trials(data)
    table.attrs = {"format": "autoprune-trials", "version": VERSION}
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, engine="pyarrow")


def write_trials_csv(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the trial table as CSV, with the columns of the parquet file."""
    content = _trials(data).to_csv(index=False, lineterminator="\n")
    write_atomically(path, content.encode("utf-8", "backslashreplace"))


def _trials(data: ReportData) -> pd.DataFrame:
    table = data.trials[[*TRIAL_COLUMNS, *data.extra]].reset_index(drop=True)
    table["hypervolume"] = list(data.hypervolume)
    return table


def write_front_csv(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the Pareto front as CSV, fastest network first; what was not computed is empty."""
    write_atomically(path, _front(data).to_csv(index=False, lineterminator="\n"))


def write_front_json(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the Pareto front with the profile, the budget and the dense network as JSON."""
    profile = dataclasses.asdict(data.profile)
    del profile["provenance"]  # the profile itself has it, at length
    points = [
        {name: None if pd.isna(value) else value for name, value in point.items()}
        for point in _front(data).to_dict("records")
    ]
    content = {
        "format": "autoprune-front",
        "version": VERSION,
        "model": data.model_name,
        "profile": profile,
        "budget_ms": data.budget_ms,
        "dense": data.dense.flat(),
        "chosen": None if data.chosen is None else data.chosen.trial,
        "hypervolume": data.hypervolume[-1] if data.hypervolume else None,
        "points": points,
    }
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _front(data: ReportData) -> pd.DataFrame:
    """Return the front with the columns :data:`FRONT_COLUMNS` and those of this search."""
    front = data.front.rename(columns={"number": "trial"})[[*FRONT_COLUMNS, *data.extra]]
    if not data.finetuned:
        return front
    tuned = {
        trial: (facts.accuracy, facts.test_accuracy) for trial, facts in data.finetuned.items()
    }
    table = pd.DataFrame.from_dict(tuned, orient="index", columns=[*FINETUNED_COLUMNS])
    return front.join(table.astype("float64"), on="trial")
