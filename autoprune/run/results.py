"""What came out of a run: the front, the best network, and what reports are written from."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
import pydantic
from torch import nn

from autoprune.errors import RunError
from autoprune.execution.driver import INTERRUPTED, Record, admitted, best_record, comparable
from autoprune.export.package import load
from autoprune.files import write_atomically
from autoprune.report.data import (
    TRIAL_COLUMNS,
    ChosenNetwork,
    DamageCurve,
    FinetunedFacts,
    Importance,
    NetworkFacts,
    NetworkLayers,
    ProfileFacts,
    ReportData,
    RunFacts,
    UniformLadder,
    trial_table,
)
from autoprune.report.html import write_report
from autoprune.report.tables import write_tables
from autoprune.run.directory import FINETUNED_FILE, FINETUNED_FOLDER, NETWORK_FOLDER, REPORT_FILE
from autoprune.run.front import FrontPoint, ParetoFront
from autoprune.strategy.goals import LATENCY, Goals, column
from autoprune.strategy.pareto import knee, pareto_mask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")

#: What of a report is neither in the study nor in the tables.
FACTS_FILE = "report.json"
TRIALS_FILE = "trials.parquet"
#: Column of the tables of a search with rungs: how long each network was trained.
RUNG_COLUMN = "rung"
FACTS_FORMAT, FACTS_VERSION = "autoprune-report", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        directory: The run directory with all files.
        points: The Pareto front, fastest network first.
        best: The most accurate network under the budget; without a budget the one of least cost
            that is as accurate as was asked for, or else the front's knee. ``None`` where no
            network was found.
        dense: The network before pruning.
        budget_ms: The latency budget, ``None`` for none.
        device: The device profile.
        hypervolume: Mean accuracy over all budgets up to the unpruned network's costs.
        trials: How many trials there are, the unpruned network and copies included.
        failures: How many trials failed, by reason, the most frequent first; those that a stop
            interrupted are left out.
        stopped: Why the search ended.
        unmet: Why there is no best network; empty where there is one.
        costs: Names of what is minimised beside the loss.
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
    unmet: str = ""
    costs: tuple[str, ...] = (LATENCY,)

    @property
    def front(self) -> ParetoFront:
        """The Pareto front, fastest network first."""
        return ParetoFront(
            points=self.points,
            dense=self.dense,
            device=self.device,
            budget_ms=self.budget_ms,
            best=self.best,
            costs=self.costs,
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return the Pareto front with the columns of ``front.csv``."""
        return self.front.to_pandas()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the front with every trial, see :meth:`ParetoFront.plot`.

        Raises:
            RunError: The run directory is gone.
            ExportError: matplotlib is not installed.
        """
        from autoprune.report.plot import plot_front

        return plot_front(read_results(self.directory), ax)

    def _repr_html_(self) -> str:
        """Return the result as a notebook shows it."""
        from autoprune.report.notebook import notebook_html

        heading = f"No network was found: {self.unmet}"
        return notebook_html(self.front.report(), heading, recommended=True)

    def load_best(self, model: nn.Module | None = None) -> nn.Module:
        """Return the best network, in eval mode.

        Args:
            model: The unpruned architecture, needed where the search was given an object.

        Raises:
            RunError: The run found no network.
        """
        if self.best is None:
            raise RunError(f"the run in {self.directory} found no network: {self.unmet}")
        # The run was ours, and so was the code it named.
        return load(self.directory / NETWORK_FOLDER, model, trust_source=True)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        values = dataclasses.asdict(self)
        return values | {"directory": str(self.directory)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a report says beyond the table of trials; see the same fields of ``ReportData``."""

    layers: tuple[NetworkLayers, ...] = ()
    dense_memory_mb: float | None = None
    uniform: UniformLadder | None = None
    damage: tuple[DamageCurve, ...] = ()
    importance: Importance | None = None


def front_records(records: Sequence[Record], goals: Goals) -> list[Record]:
    """Return the Pareto front of the networks that the goals admit, fastest first.

    Where networks were promoted it is that of the highest rung.
    """
    within = admitted(comparable(records), goals)
    within = [record for record in within if record.duplicate_of is None]
    mask = pareto_mask(*_axes(within, goals))
    front = [record for record, on in zip(within, mask, strict=True) if on]
    return sorted(front, key=lambda record: record.evaluation.latency_ms)


def chosen_record(records: Sequence[Record], goals: Goals) -> Record | None:
    """Return the best record by budget or accuracy, or the front's knee where there is neither."""
    if goals.budget_ms is not None or goals.min_accuracy is not None:
        return best_record([r for r in comparable(records) if r.duplicate_of is None], goals)
    front = front_records(records, goals)
    return front[knee(*_axes(front, goals))] if front else None


def unmet(records: Sequence[Record], goals: Goals) -> str:
    """Return why no record can be chosen; empty where one can."""
    if chosen_record(records, goals) is not None:
        return ""
    least = goals.min_accuracy
    inside = admitted(comparable(records), dataclasses.replace(goals, min_accuracy=None))
    if least is None or not inside:
        return "no evaluation within the limits gave a network; see the failures in the report"
    best = max(inside, key=lambda record: record.evaluation.accuracy)
    return (
        f"no network within the limits reaches the accuracy of {least:.1%}; the best of "
        f"{len(inside)}, trial {best.number}, has {best.evaluation.accuracy:.1%}. Ask for less "
        "accuracy, allow more, or search on"
    )


def report_data(
    records: Sequence[Record],
    *,
    model_name: str,
    profile: ProfileFacts,
    goals: Goals,
    dense: Record,
    chosen: ChosenNetwork | None,
    run: RunFacts,
    test_accuracy: Mapping[int, float],
    finetuned: Mapping[int, FinetunedFacts] = MappingProxyType({}),
    explanation: Explanation | None = None,
) -> ReportData:
    """Return what tables and page are written from.

    Args:
        records: Every trial that has ended, in that order.
        model_name: What the model is called.
        profile: The device profile.
        goals: What networks are judged by.
        dense: The unpruned network's record.
        chosen: The recommended network.
        run: How the run was made.
        test_accuracy: By trial number, where it was computed.
        finetuned: By trial number, see :func:`finetuned_facts`.
        explanation: What else is known, ``None`` for nothing.
    """
    front = {record.number for record in front_records(records, goals)}
    rows = [
        _row(record, test_accuracy) | {"on_front": record.number in front} for record in records
    ]
    extra, dense_row = tuple(map(column, goals.extra)), _facts(dense, test_accuracy)
    if any(record.rung for record in records):
        extra, dense_row = (*extra, RUNG_COLUMN), dense_row | {RUNG_COLUMN: dense.rung}
        rows = [row | {RUNG_COLUMN: record.rung} for row, record in zip(rows, records, strict=True)]
    return ReportData(
        model_name=model_name,
        profile=profile,
        budget_ms=goals.budget_ms,
        costs=goals.costs,
        dense=NetworkFacts.of_row(dense_row),
        trials=trial_table(rows, extra=extra),
        hypervolume=tuple(record.hypervolume for record in records),
        chosen=chosen,
        run=run,
        finetuned=finetuned,
        **_fields(explanation or Explanation()),
    )


def finetuned_facts(folder: Path) -> dict[int, FinetunedFacts]:
    """Return what is known of the networks of a run that were fine-tuned, by trial number.

    Raises:
        RunError: Their table is damaged.
    """
    file = folder / FINETUNED_FOLDER / FINETUNED_FILE
    if not file.is_file():
        return {}
    try:
        rows = pd.read_csv(file).astype({"finetuned_test_accuracy": "float64"})
        return {
            int(row["trial"]): FinetunedFacts(
                accuracy=float(row["finetuned_accuracy"]),
                test_accuracy=None
                if math.isnan(row["finetuned_test_accuracy"])
                else row["finetuned_test_accuracy"],
            )
            for row in rows.to_dict("records")
        }
    except (OSError, KeyError, ValueError) as error:
        raise RunError(
            f"{file} is damaged ({error!r}); delete it, and `autoprune finetune` writes it again"
        ) from error


def result_from(
    data: ReportData, directory: Path, stopped: str, *, unmet: str = ""
) -> SearchResult:
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
        unmet=unmet,
        costs=data.costs,
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
        "costs": list(data.costs),
        "dense": dataclasses.asdict(data.dense),
        "chosen": None if data.chosen is None else dataclasses.asdict(data.chosen),
        "run": dataclasses.asdict(data.run),
        "explanation": dataclasses.asdict(
            Explanation(**{f.name: getattr(data, f.name) for f in dataclasses.fields(Explanation)})
        ),
    }
    write_atomically(folder / FACTS_FILE, json.dumps(facts, allow_nan=False) + "\n")
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
            trials=table.drop(columns="hypervolume").astype(TRIAL_COLUMNS),
            model_name=str(facts["model_name"]),
            budget_ms=facts["budget_ms"],
            costs=tuple(facts.get("costs", ReportData.costs)),
            hypervolume=tuple(table["hypervolume"].tolist()),
            profile=_restored(ProfileFacts, facts["profile"]),
            dense=_restored(NetworkFacts, facts["dense"]),
            chosen=facts["chosen"] and _restored(ChosenNetwork, facts["chosen"]),
            run=_restored(RunFacts, facts["run"]),
            finetuned=finetuned_facts(Path(folder)),
            **_fields(_restored(Explanation, facts.get("explanation", {}))),
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"the results in {folder} are damaged: {error!r}") from error


def _restored(kind: type[T], values: Mapping[str, Any]) -> T:
    return pydantic.TypeAdapter(kind).validate_python(values)


def _fields(explanation: Explanation) -> dict[str, Any]:
    return {f.name: getattr(explanation, f.name) for f in dataclasses.fields(explanation)}


def _axes(records: Sequence[Record], goals: Goals) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy and costs of records as two arrays."""
    costs = [[record.evaluation.cost(name) for name in goals.costs] for record in records]
    return (
        np.array([record.evaluation.accuracy for record in records], float),
        np.array(costs, float).reshape(len(records), len(goals.costs)),
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
        **{column(name): value for name, value in scores.costs.items()},
    }
