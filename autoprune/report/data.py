"""The plain data every report is written from; whoever runs a search fills it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from autoprune.errors import RunError
from autoprune.strategy.goals import LATENCY

#: Columns of the trial table and their pandas types. ``accuracy`` and ``test_accuracy`` are
#: fractions, ``latency_ms`` is per batch of the profile, a column that does not apply is missing.
TRIAL_COLUMNS: dict[str, str] = {
    "number": "int64",
    "loss": "float64",
    "loss_stderr": "float64",
    "accuracy": "float64",
    "samples": "Int64",
    "test_accuracy": "float64",
    "latency_ms": "float64",
    "macs": "Int64",
    "params": "Int64",
    "seconds": "float64",
    "status": "string",
    "reason": "string",
    "on_front": "bool",
}

#: What a trial row may leave out, and what then stands in the table.
_DEFAULTS: dict[str, object] = {
    "loss": float("nan"),
    "loss_stderr": float("nan"),
    "accuracy": float("nan"),
    "samples": None,
    "test_accuracy": float("nan"),
    "latency_ms": float("nan"),
    "macs": None,
    "params": None,
    "seconds": float("nan"),
    "reason": "",
    "on_front": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What is known about one network.

    Attributes:
        accuracy: Fraction right on the search split.
        loss: The metric on the search split, in nats.
        latency_ms: Predicted latency of one batch.
        macs: Multiply-accumulates of one batch.
        params: Number of parameter elements.
        test_accuracy: Fraction right on the test split, ``None`` where it was not computed.
        samples: Samples of the search split, ``None`` where the task does not say.
        loss_stderr: Standard error of ``loss``, ``None`` where it is not known.
        extra: What else the search's objectives and limits name, by column.
    """

    accuracy: float
    loss: float
    latency_ms: float
    macs: int
    params: int
    test_accuracy: float | None = None
    samples: int | None = None
    loss_stderr: float | None = None
    extra: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """Return the fields by name, those of ``extra`` among them."""
        values: dict[str, Any] = dataclasses.asdict(self)
        values |= values.pop("extra")
        return values

    @classmethod
    def of_row(cls, row: Mapping[Any, Any]) -> NetworkFacts:
        """Return the facts of a network from its row of the trial table."""
        known = {*TRIAL_COLUMNS, "hypervolume"}
        return cls(
            accuracy=float(row["accuracy"]),
            loss=float(row["loss"]),
            latency_ms=float(row["latency_ms"]),
            macs=int(row["macs"]),
            params=int(row["params"]),
            test_accuracy=None if pd.isna(row["test_accuracy"]) else float(row["test_accuracy"]),
            samples=None if pd.isna(row["samples"]) else int(row["samples"]),
            loss_stderr=None if pd.isna(row["loss_stderr"]) else float(row["loss_stderr"]),
            extra={str(name): float(row[name]) for name in row if name not in known},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileFacts:
    """The device profile the latencies come from.

    Attributes:
        name: Name of the profile.
        device: The device in words.
        runtime: What executes the network there.
        precision: Number format, e.g. ``"fp16"``.
        batch: Images (or sequences) per forward pass.
        error: Relative held-out error as a fraction; 0.12 is shown as ``± 12 %``.
        error_text: The same in words: which statistic over which measurements.
        provenance: Where the measurements came from, one line each.
        notes: Where predictions leave what was measured, so that the error may not hold.
    """

    name: str
    device: str
    runtime: str
    precision: str
    batch: int
    error: float
    error_text: str
    provenance: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GroupWidth:
    """How many units of a channel group the chosen network keeps.

    Attributes:
        name: Name of the channel group.
        kept: Units it keeps.
        size: Units the dense network has.
    """

    name: str
    kept: int
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelTime:
    """Predicted time of one kernel in both networks.

    Attributes:
        name: Name of the kernel, usually a module path.
        kind: What it computes.
        dense_ms: Its share of the dense network's latency.
        chosen_ms: Its share of the chosen network's latency, 0 where it was removed.
    """

    name: str
    kind: str
    dense_ms: float
    chosen_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenNetwork:
    """The network the run recommends: the most accurate one under the budget, or the knee.

    Attributes:
        trial: Number of its trial.
        widths: Kept units of every channel group, in network order.
        removed_blocks: Names of the blocks it goes without.
        kernels: Latency per kernel in execution order, empty where it is not known.
    """

    trial: int
    widths: tuple[GroupWidth, ...]
    removed_blocks: tuple[str, ...] = ()
    kernels: tuple[KernelTime, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetunedFacts:
    """What a network of the search is worth after fine-tuning.

    Attributes:
        accuracy: Fraction right on the search split.
        test_accuracy: Fraction right on the test split, ``None`` where it was not computed.
    """

    accuracy: float
    test_accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkLayers:
    """What one network of the front is made of; its lists go with those of the chosen network.

    Attributes:
        trial: Number of its trial.
        kept: Units that each channel group keeps, in the order of ``ChosenNetwork.widths``.
        kernel_ms: Latency of each kernel, in the order of ``ChosenNetwork.kernels``; 0 where it was
            removed.
        removed_blocks: Names of the blocks it goes without.
        memory_mb: Megabytes of its weights and of the activations when most are alive.
    """

    trial: int
    kept: tuple[int, ...]
    kernel_ms: tuple[float, ...]
    removed_blocks: tuple[str, ...] = ()
    memory_mb: float | None = None


@dataclasses.dataclass(frozen=True)
class UniformLadder:
    """Networks that remove the same ratio everywhere: what a search has to beat.

    Attributes:
        networks: In the order in which the sampler ``uniform`` proposes them.
        hypervolume: Hypervolume after each of them, fractions in [0, 1].
    """

    networks: tuple[NetworkFacts, ...]
    hypervolume: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class DamageCurve:
    """What cutting one group of the search space is expected to cost, known before the search.

    Attributes:
        name: Name of the group.
        ratios: Fractions removed, ascending from 0.
        damage: Expected damage at each of them; comparable between groups of one run.
    """

    name: str
    ratios: tuple[float, ...]
    damage: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Importance:
    """How much each parameter of the search decided the loss.

    Attributes:
        shares: Parameter to its share of the explained variance, the largest first; they add up to
            1. ``ratio/GROUP`` is what was removed of a group, ``drop/BLOCK`` a removed block.
        trials: How many trials they were computed from.
    """

    shares: Mapping[str, float]
    trials: int


@dataclasses.dataclass(frozen=True)
class Command:
    """Something to copy into a terminal or a program.

    Attributes:
        title: What it does: ``"Load the network in Python"``.
        text: The lines to copy.
    """

    title: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """How the run was made.

    Attributes:
        settings: Every setting, nested mappings allowed.
        versions: Package name to version.
        seed: The seed of the search.
        commands: How to load the chosen network, and to resume.
        network_commands: How to get any network of the front; ``{trial}`` stands for its number.
    """

    settings: Mapping[str, object]
    versions: Mapping[str, str]
    seed: int
    commands: tuple[Command, ...] = ()
    network_commands: tuple[Command, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Everything a report says.

    Attributes:
        model_name: The network that was pruned, as the user named it.
        profile: The device profile.
        budget_ms: Latency budget, ``None`` where the run had none.
        dense: The network before pruning.
        trials: One row per trial in the order they ended; see :func:`trial_table`.
        hypervolume: Hypervolume after each row of ``trials``, fractions in [0, 1].
        chosen: The recommended network, ``None`` where no trial is complete.
        run: How the run was made.
        costs: Names of what the front is sought of beside accuracy, see
            :class:`~autoprune.strategy.goals.Goals`.
        finetuned: By trial number, the networks that were fine-tuned since.
        layers: What the networks of the front are made of, fastest first; empty in runs of versions
            that did not say.
        dense_memory_mb: Megabytes of the unpruned network, as ``NetworkLayers.memory_mb``.
        uniform: Networks pruned uniformly, ``None`` where none was evaluated.
        damage: What every group costs, in network order; empty where it was not computed.
        importance: What decided the loss, ``None`` where too few trials say it.
    """

    model_name: str
    profile: ProfileFacts
    budget_ms: float | None
    dense: NetworkFacts
    trials: pd.DataFrame
    hypervolume: tuple[float, ...]
    chosen: ChosenNetwork | None
    run: RunFacts
    costs: tuple[str, ...] = (LATENCY,)
    finetuned: Mapping[int, FinetunedFacts] = dataclasses.field(default_factory=dict)
    layers: tuple[NetworkLayers, ...] = ()
    dense_memory_mb: float | None = None
    uniform: UniformLadder | None = None
    damage: tuple[DamageCurve, ...] = ()
    importance: Importance | None = None

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            RunError: A column is missing, the hypervolume has another length than the trials, or
                the chosen trial is not a complete row.
        """
        faults = []
        missing = [column for column in TRIAL_COLUMNS if column not in self.trials.columns]
        if missing:
            faults.append(
                f"the trial table lacks {', '.join(missing)}; make it with report.data.trial_table"
            )
        elif self.chosen is not None and self.chosen.trial not in set(self.complete["number"]):
            faults.append(f"the chosen trial {self.chosen.trial} is not a complete trial")
        if len(self.hypervolume) != len(self.trials):
            faults.append(
                "expected one hypervolume per trial, "
                f"got {len(self.hypervolume)} for {len(self.trials)} trials"
            )
        if faults:
            raise RunError("a report cannot be made: " + "; ".join(faults))

    @property
    def complete(self) -> pd.DataFrame:
        """The trials that gave a network that was scored on all samples."""
        return self.trials[self.trials["status"] == "complete"]

    @property
    def extra(self) -> tuple[str, ...]:
        """Columns of the trial table that only this search has."""
        return tuple(name for name in self.trials.columns if name not in TRIAL_COLUMNS)

    @property
    def failed(self) -> pd.DataFrame:
        """The trials that gave none."""
        return self.trials[self.trials["status"] == "failed"]

    @property
    def front(self) -> pd.DataFrame:
        """The Pareto front, fastest network first."""
        complete = self.complete
        return complete[complete["on_front"]].sort_values(["latency_ms", "number"])

    @property
    def chosen_facts(self) -> NetworkFacts | None:
        """The chosen network's row as plain values."""
        if self.chosen is None:
            return None
        complete = self.complete
        row = complete[complete["number"] == self.chosen.trial].to_dict("records")[0]
        return NetworkFacts.of_row(row)


def trial_table(
    rows: Iterable[Mapping[str, object]], *, extra: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Return trials as a table with the columns and types of :data:`TRIAL_COLUMNS`.

    Args:
        rows: One mapping per trial; ``number`` and ``status`` are required, what is left out or
            ``None`` is missing in the table (``reason``: empty, ``on_front``: false).
        extra: Further columns, of numbers.

    Raises:
        RunError: A row has a column nobody knows, or lacks its number or status.
    """
    filled = []
    for row in rows:
        unknown = sorted(set(row) - {*TRIAL_COLUMNS, *extra})
        lacking = [name for name in ("number", "status") if row.get(name) is None]
        if unknown or lacking:
            raise RunError(
                f"trial row {dict(row)!r} has unknown columns {unknown} and lacks {lacking}; "
                f"known: {', '.join(TRIAL_COLUMNS)}"
            )
        filled.append(_DEFAULTS | {k: _clean(v) for k, v in row.items() if v is not None})
    table = pd.DataFrame(filled, columns=[*TRIAL_COLUMNS, *extra])
    return table.astype(TRIAL_COLUMNS | dict.fromkeys(extra, "float64"))


def _clean(value: object) -> object:
    """Return text without lone surrogates, which neither parquet nor UTF-8 can hold.

    They come from exceptions that quote undecodable file names.
    """
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()
