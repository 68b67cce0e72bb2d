"""What the page says of single networks, in words and rows; the same for every selected one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.report import text
from autoprune.report.data import NetworkLayers, ReportData
from autoprune.report.figures import selectable


@dataclasses.dataclass(frozen=True)
class Card:
    """One figure of a network.

    Attributes:
        name: What it is.
        value: The figure.
        notes: What it was before pruning, and how sure it is.
    """

    name: str
    value: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class NetworkView:
    """A network as the page shows it.

    Attributes:
        trial: Number of its trial.
        words: It in one line.
        tags: What sets it apart: that the search recommends it, that it is over the budget.
        cards: Its figures.
        kept: Units of each channel group, empty where they are not known.
        kernel_ms: Latency of each kernel as text, ``"0"`` where it is gone.
        kernel_total: Their sum.
        removed: Which blocks it goes without, as a sentence.
    """

    trial: int
    words: str
    tags: tuple[str, ...]
    cards: tuple[Card, ...]
    kept: tuple[int, ...] = ()
    kernel_ms: tuple[str, ...] = ()
    kernel_total: str = ""
    removed: str = ""


def network_views(data: ReportData) -> list[NetworkView]:
    """Return the networks that can be selected, fastest first."""
    layers = {entry.trial: entry for entry in _layers(data)}
    return [_view(data, row, layers.get(int(row["number"]))) for row in selectable(data)]


def _removed(blocks: Sequence[str]) -> str:
    """Return which blocks are gone, as a sentence."""
    if not blocks:
        return "No block was removed as a whole."
    return f"Blocks removed as a whole: {', '.join(blocks)}."


def _layers(data: ReportData) -> tuple[NetworkLayers, ...]:
    """Return what is known of the networks' layers, of the chosen one at least."""
    chosen = data.chosen
    if chosen is None or any(entry.trial == chosen.trial for entry in data.layers):
        return data.layers
    own = NetworkLayers(
        trial=chosen.trial,
        kept=tuple(group.kept for group in chosen.widths),
        kernel_ms=tuple(kernel.chosen_ms for kernel in chosen.kernels),
        removed_blocks=chosen.removed_blocks,
    )
    return (*data.layers, own)


def _view(data: ReportData, row: Mapping[Any, Any], layers: NetworkLayers | None) -> NetworkView:
    trial, tags = int(row["number"]), []
    if data.chosen is not None and trial == data.chosen.trial:
        tags.append("chosen")
    if data.budget_ms is not None and row["latency_ms"] > data.budget_ms:
        tags.append("over budget")
    view = NetworkView(
        trial=trial,
        words=f"trial {trial}: {text.percent(row['accuracy'], 2)} accuracy, "
        f"{text.milliseconds(row['latency_ms'])} ± {text.percent(data.profile.error, 0)}",
        tags=tuple(tags),
        cards=_cards(data, row, layers),
    )
    if layers is None:
        return view
    return dataclasses.replace(
        view,
        kept=layers.kept,
        kernel_ms=tuple(text.significant(ms) if ms else "0" for ms in layers.kernel_ms),
        kernel_total=text.significant(math.fsum(layers.kernel_ms)),
        removed=_removed(layers.removed_blocks),
    )


def _cards(
    data: ReportData, row: Mapping[Any, Any], layers: NetworkLayers | None
) -> tuple[Card, ...]:
    dense, error, latency = data.dense, data.profile.error, float(row["latency_ms"])
    low, high = (text.significant(latency * (1 + sign * error)) for sign in (-1, 1))
    cards = [
        Card(
            "Accuracy, search split",
            text.percent(row["accuracy"], 2),
            _against(text.percent(dense.accuracy, 2), text.points(row["accuracy"], dense.accuracy)),
        )
    ]
    if dense.test_accuracy is not None:
        tested = row["test_accuracy"]
        difference = text.points(tested, dense.test_accuracy) if tested == tested else text.MISSING
        cards.append(
            Card(
                "Accuracy, test split",
                text.percent(tested, 2),
                _against(text.percent(dense.test_accuracy, 2), difference),
            )
        )
    if int(row["number"]) in data.finetuned:
        tuned = data.finetuned[int(row["number"])]
        words = (f"{text.percent(tuned.test_accuracy, 2)} on the test split",)
        known = tuned.test_accuracy is not None
        cards.append(
            Card("Accuracy, fine-tuned", text.percent(tuned.accuracy, 2), words if known else ())
        )
    cards += [
        Card(
            "Latency, predicted",
            text.milliseconds(latency),
            (
                f"{low} to {high} at ± {text.percent(error, 0)}",
                f"unpruned {text.milliseconds(dense.latency_ms)}",
            ),
        ),
        Card("Speed-up", f"{dense.latency_ms / latency:.2f}{text.TIMES}", ()),
        _counted("MACs per batch", row["macs"], dense.macs),
        _counted("Parameters", row["params"], dense.params),
    ]
    extra = {name: (row[name], before) for name, before in dense.extra.items() if name in row}
    if layers is not None and layers.memory_mb is not None and data.dense_memory_mb is not None:
        extra["memory_mb"] = (layers.memory_mb, data.dense_memory_mb)
    return (*cards, *(_cost(name, now, before) for name, (now, before) in extra.items()))


def _against(before: str, difference: str) -> tuple[str, ...]:
    return (f"unpruned {before}", difference)


def _counted(name: str, now: int | float, before: int | float) -> Card:
    return Card(name, text.count(now), _against(text.count(before), text.change(now, before)))


def _cost(column: str, now: int | float, before: int | float) -> Card:
    name = text.cost_title(column)
    words = _against(text.cost(before, column), text.change(now, before))
    return Card(name[:1].upper() + name[1:], text.cost(now, column), words)
