"""What came out of a run: the front, the best network, and what reports are written from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pydantic
from torch import nn

from autoprune.errors import RunError
from autoprune.execution.driver import INTERRUPTED, Record, best_record
from autoprune.export.package import load
from autoprune.files import write_atomically
from autoprune.report.data import (
    TRIAL_COLUMNS,
    ChosenNetwork,
    NetworkFacts,
    ProfileFacts,
    ReportData,
    RunFacts,
    trial_table,
)
from autoprune.report.html import write_report
from autoprune.report.tables import FRONT_COLUMNS, write_tables
from autoprune.run.directory import NETWORK_FOLDER, REPORT_FILE
from autoprune.strategy.pareto import knee, pareto_mask

T = TypeVar("T")

#: What of a report is neither in the study nor in the tables.
FACTS_FILE = "report.json"
TRIALS_FILE = "trials.parquet"
FACTS_FORMAT, FACTS_VERSION = "autoprune-report", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontPoint(NetworkFacts):
    """One network of the Pareto front.

    Attributes:
        trial: Number of its trial.
    """

    trial: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        directory: The run directory with all files.
        points: The Pareto front, fastest network first.
        best: The most accurate network under the budget, without a budget the front's knee;
            ``None`` where no network was found.
        dense: The network before pruning.
        budget_ms: The latency budget, ``None`` for none.
        device: The device profile.
        hypervolume: Mean accuracy over all budgets up to the unpruned network's latency.
        trials: How many trials there are, the unpruned network and copies included.
        failures: How many trials failed, by reason, the most frequent first; those that a stop
            interrupted are left out.
        stopped: Why the search ended.
    """

    directory: Path
    points: tuple[FrontPoint, ...]
    best: FrontPoint | None
    dense: NetworkFacts
    budget_ms: float | None
    device: ProfileFacts
    hypervolume: float
    trials: int
    failures: dict[str, int]
    stopped: str

    @property
    def front(self) -> pd.DataFrame:
        """The Pareto front as a table, fastest network first; see :meth:`to_pandas`."""
        return self.to_pandas()

    def to_pandas(self) -> pd.DataFrame:
        """Return the Pareto front with the columns of ``front.csv``."""
        return pd.DataFrame(
            [dataclasses.asdict(point) for point in self.points], columns=list(FRONT_COLUMNS)
        )

    def load_best(self, model: nn.Module | None = None) -> nn.Module:
        """Return the best network, in eval mode.

        Args:
            model: The unpruned architecture, needed where the search was given an object.

        Raises:
            RunError: The run found no network.
        """
        if self.best is None:
            raise RunError(f"the run in {self.directory} found no network; see its report")
        # The run was ours, and so was the code it named.
        return load(self.directory / NETWORK_FOLDER, model, trust_source=True)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        values = dataclasses.asdict(self)
        return values | {"directory": str(self.directory)}


def front_records(records: Sequence[Record], budget_ms: float | None) -> list[Record]:
    """Return the Pareto front of the networks within the budget, fastest first."""
    within = [
        record
        for record in records
        if record.complete
        and record.duplicate_of is None
        and (budget_ms is None or record.evaluation.latency_ms <= budget_ms)
    ]
    mask = pareto_mask(*_axes(within))
    front = [record for record, on in zip(within, mask, strict=True) if on]
    return sorted(front, key=lambda record: record.evaluation.latency_ms)


def chosen_record(records: Sequence[Record], budget_ms: float | None) -> Record | None:
    """Return the best record under the budget, or the front's knee where there is none."""
    if budget_ms is not None:
        return best_record([r for r in records if r.duplicate_of is None], budget_ms)
    front = front_records(records, None)
    return front[knee(*_axes(front))] if front else None


def report_data(
    records: Sequence[Record],
    *,
    model_name: str,
    profile: ProfileFacts,
    budget_ms: float | None,
    dense: Record,
    chosen: ChosenNetwork | None,
    run: RunFacts,
    test_accuracy: Mapping[int, float],
) -> ReportData:
    """Return what tables and page are written from.

    Args:
        records: Every trial that has ended, in that order.
        model_name: What the model is called.
        profile: The device profile.
        budget_ms: The latency budget.
        dense: The unpruned network's record.
        chosen: The recommended network.
        run: How the run was made.
        test_accuracy: By trial number, where it was computed.
    """
    front = {record.number for record in front_records(records, budget_ms)}
    rows = [
        _row(record, test_accuracy) | {"on_front": record.number in front} for record in records
    ]
    return ReportData(
        model_name=model_name,
        profile=profile,
        budget_ms=budget_ms,
        dense=NetworkFacts(**_facts(dense, test_accuracy)),
        trials=trial_table(rows),
        hypervolume=tuple(record.hypervolume for record in records),
        chosen=chosen,
        run=run,
    )


def result_from(data: ReportData, directory: Path, stopped: str) -> SearchResult:
    """Return the search's result for Python and the command line."""
    points = tuple(
        FrontPoint(trial=int(row["number"]), **dataclasses.asdict(NetworkFacts.of_row(row)))
        for row in data.front.to_dict("records")
    )
    reasons = data.failed["reason"]
    failures = reasons[reasons != INTERRUPTED].value_counts()
    best, facts = None, data.chosen_facts
    if data.chosen is not None and facts is not None:
        best = FrontPoint(trial=data.chosen.trial, **dataclasses.asdict(facts))
    return SearchResult(
        directory=directory,
        points=points,
        best=best,
        dense=data.dense,
        budget_ms=data.budget_ms,
        device=data.profile,
        hypervolume=data.hypervolume[-1] if data.hypervolume else 0.0,
        trials=len(data.trials),
        failures={str(reason): int(number) for reason, number in failures.items()},
        stopped=stopped,
    )


def write_results(data: ReportData, folder: Path) -> None:
    """Write the tables, the page, and what :func:`read_results` needs to write the page again."""
    write_tables(data, folder)
    facts = {
        "format": FACTS_FORMAT,
        "version": FACTS_VERSION,
        "model_name": data.model_name,
        "profile": dataclasses.asdict(data.profile),
        "budget_ms": data.budget_ms,
        "dense": dataclasses.asdict(data.dense),
        "chosen": None if data.chosen is None else dataclasses.asdict(data.chosen),
        "run": dataclasses.asdict(data.run),
    }
    write_atomically(folder / FACTS_FILE, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    write_report(data, folder / REPORT_FILE)


def read_results(folder: str | os.PathLike[str]) -> ReportData:
    """Return what :func:`write_results` wrote into ``folder``.

    Raises:
        RunError: A file is missing, damaged, or of another version.
    """
    file = Path(folder) / FACTS_FILE
    if not file.is_file():
        raise RunError(
            f"{folder} has no results yet; finish the search with "
            f"`autoprune search --resume {folder}`"
        )
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        form = (facts.pop("format"), facts.pop("version"))
        if form != (FACTS_FORMAT, FACTS_VERSION):
            raise RunError(
                f"{file} is {form[0]} version {form[1]}; this autoprune reads "
                f"{FACTS_FORMAT} version {FACTS_VERSION}"
            )
        table = pd.read_parquet(Path(folder) / TRIALS_FILE)
        return ReportData(
            trials=table[list(TRIAL_COLUMNS)].astype(TRIAL_COLUMNS),
            model_name=str(facts["model_name"]),
            budget_ms=facts["budget_ms"],
            hypervolume=tuple(table["hypervolume"].tolist()),
            profile=_restored(ProfileFacts, facts["profile"]),
            dense=_restored(NetworkFacts, facts["dense"]),
            chosen=facts["chosen"] and _restored(ChosenNetwork, facts["chosen"]),
            run=_restored(RunFacts, facts["run"]),
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"the results in {folder} are damaged: {error!r}") from error


def _restored(kind: type[T], values: Mapping[str, Any]) -> T:
    return pydantic.TypeAdapter(kind).validate_python(values)


def _axes(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy and latency of records as two arrays."""
    return (
        np.array([record.evaluation.accuracy for record in records], float),
        np.array([record.evaluation.latency_ms for record in records], float),
    )


def _row(record: Record, test_accuracy: Mapping[int, float]) -> dict[str, Any]:
    """Return a record as a row of the trial table."""
    scores = record.evaluation
    reason = scores.reason
    if record.dense:
        reason = "the unpruned network"
    elif record.duplicate_of is not None and scores.status != "failed":
        reason = f"same network as trial {record.duplicate_of}"
    elif scores.status == "screened":
        reason = f"clearly worse after {scores.samples} samples than a network as fast"
    return {
        **_facts(record, test_accuracy),
        "number": record.number,
        "status": scores.status,
        "seconds": scores.seconds,
        "reason": reason,
    }


def _facts(record: Record, test_accuracy: Mapping[int, float]) -> dict[str, Any]:
    scores = record.evaluation
    return {
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "latency_ms": scores.latency_ms,
        "macs": scores.macs or None,  # 0 where an interrupted trial stored nothing
        "params": scores.params or None,
        "samples": scores.samples or None,
        "loss_stderr": None if math.isnan(scores.loss_stderr) else scores.loss_stderr,
        "test_accuracy": test_accuracy.get(record.number),
    }
