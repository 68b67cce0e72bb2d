"""The charts of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autoprune.report import text
from autoprune.report.chart import (
    Axis,
    Chart,
    Line,
    Mark,
    Rule,
    axis,
    band,
    cloud,
    error_axis,
    percent_label,
    polyline,
    staircase,
)
from autoprune.report.data import DamageCurve, NetworkFacts, ReportData

#: Dominated trials stretch the accuracy axis by the span of the front, or by this if it is more.
_STRETCH = 0.05
#: A budget up to this many times the slowest network is shown; beyond, it would squeeze the rest.
_FAR = 1.5
#: What is left free beside the outermost points, as a share of the axis.
_MARGIN = 0.06
#: Errors that differ more than this many times are shown by their logarithm.
_ORDERS = 10.0
#: Samples of the search split where the run does not say.
_SAMPLES = 1000


def front(data: ReportData, cost: str = "latency_ms") -> Chart:
    """Return accuracy against a cost: the front with the profile's error, and what it beats.

    Args:
        data: The run.
        cost: Column of the cost. Along one of several the front is no staircase, so its points
            stand alone.
    """
    alone, predicted = len(data.costs) == 1, cost == "latency_ms"
    error = data.profile.error if predicted else 0.0
    x, scale = _cost_axis(data, cost)
    y = _accuracy_axis(data)
    complete, rows = data.complete, data.front.to_dict("records")
    stairs = [(row[cost] * scale, row["accuracy"]) for row in rows] if alone else []
    beaten = complete[~complete["on_front"] & (complete["accuracy"] >= y.low)]
    if data.chosen is not None:
        beaten = beaten[beaten["number"] != data.chosen.trial]
    key = {"front": _front_name(error)}
    if len(beaten):
        key["dominated"] = "dominated trials"
    marks = [_mark("dense", data.dense.flat(), cost, x, y, scale, error)]
    key["dense"] = "unpruned network"
    if data.uniform is not None and (marked := _uniform(data.uniform.networks, cost, x, y, scale)):
        marks += marked
        key["uniform"] = "uniform pruning"
    for row in selectable(data):
        chosen = data.chosen is not None and row["number"] == data.chosen.trial
        marks.append(_mark("chosen" if chosen else "front", row, cost, x, y, scale, error))
        if chosen:
            key["chosen"] = "chosen network"
    points = beaten[[cost, "accuracy"]].to_numpy(float) * [scale, 1.0]
    return Chart(
        label=f"Accuracy against {text.cost_title(cost)}",
        x=x,
        y=y,
        key=key,
        lines=(
            Line("dominated", cloud(x, y, points)),
            Line("band", band(x, y, stairs, error) if predicted else ""),
            Line("front", staircase(x, y, stairs)),
        ),
        rules=_budget(data.budget_ms, x) if predicted else (),
        marks=tuple(marks),
        said=tuple(
            f"trial {number}: {text.percent(accuracy)}, {text.cost(float(value), cost)}"
            for number, accuracy, value in zip(
                beaten["number"].astype(int), beaten["accuracy"], beaten[cost], strict=True
            )
        ),
    )


def selectable(data: ReportData) -> Sequence[Mapping[Any, Any]]:
    """Return the rows of the front, and of the chosen network, fastest first."""
    complete = data.complete
    wanted = complete["on_front"].astype(bool)
    if data.chosen is not None:
        wanted |= complete["number"] == data.chosen.trial
    rows: Sequence[Mapping[Any, Any]] = (
        complete[wanted].sort_values(["latency_ms", "number"]).to_dict("records")
    )
    return rows


def hypervolume(data: ReportData) -> Chart:
    """Return the hypervolume over the finished trials, and what uniform pruning reaches."""
    values, ladder = data.hypervolume, data.uniform
    reference = ladder.hypervolume if ladder is not None else ()
    top = max([*values, *reference, 0.01])
    x = axis("trials finished", 0.0, float(max(len(values), 1)))
    y = axis("hypervolume", 0.0, min(1.0, 1.08 * top), label=percent_label, steps=4)
    risen = [1, *(i + 1 for i in range(1, len(values)) if values[i] > values[i - 1])]
    lines = [Line("front", staircase(x, y, [(float(i), values[i - 1]) for i in risen if values]))]
    key = {"front": "this search"}
    if ladder is not None:
        steps = [(float(i), value) for i, value in enumerate(ladder.hypervolume, start=1)]
        lines.append(Line("uniform", staircase(x, y, steps)))
        key["uniform"] = f"uniform ladder, {_count(len(steps), 'network')}"
    return Chart(
        label=f"Hypervolume over {_count(len(values), 'finished trial')}",
        x=x,
        y=y,
        key=key,
        lines=tuple(lines),
    )


def damage_paths(curves: Sequence[DamageCurve]) -> dict[str, str]:
    """Return each group's curve as a path; all have the same axes, damage by its square root.

    Groups differ by orders of magnitude, which the root keeps on one scale.
    """
    most = max((max(curve.damage) for curve in curves), default=0.0)
    x, y = axis("", 0.0, 1.0), axis("", 0.0, float(np.sqrt(most)) or 1.0)
    return {
        curve.name: polyline(
            x, y, zip(curve.ratios, np.sqrt(np.maximum(curve.damage, 0.0)), strict=True)
        )
        for curve in curves
    }


def damage_at(curve: DamageCurve, ratio: float) -> float:
    """Return the damage at a ratio, NaN beyond what may be removed."""
    if ratio > curve.ratios[-1]:
        return math.nan
    return float(np.interp(ratio, curve.ratios, curve.damage))


def _front_name(error: float) -> str:
    return f"Pareto front, ± {text.percent(error, 0)} latency error" if error else "Pareto front"


def _budget(budget_ms: float | None, x: Axis) -> tuple[Rule, ...]:
    if budget_ms is None or not x.holds(budget_ms):
        return ()
    return (Rule("budget", x.at(budget_ms), f"budget {text.milliseconds(budget_ms)}"),)


def _uniform(
    networks: Sequence[NetworkFacts], cost: str, x: Axis, y: Axis, scale: float
) -> list[Mark]:
    rows = [network.flat() for network in networks]
    shown = [r for r in rows if x.holds(r[cost] * scale) and y.holds(r["accuracy"])]
    return [_mark("uniform", row, cost, x, y, scale, 0.0) for row in shown]


def _mark(
    kind: str, row: Mapping[Any, Any], cost: str, x: Axis, y: Axis, scale: float, error: float
) -> Mark:
    value = row[cost] * scale
    names = {"dense": "unpruned network", "uniform": "uniform pruning"}
    words = f"{text.percent(row['accuracy'], 2)}, {text.cost(row[cost], cost)}"
    return Mark(
        kind=kind,
        x=x.at(value),
        y=y.at(row["accuracy"]),
        label=f"{names[kind] if kind in names else 'trial ' + str(row['number'])}: {words}",
        trial=None if kind in names else int(row["number"]),
        error=(x.at(value * (1 - error)), x.at(value * (1 + error))) if error else None,
    )


def _cost_axis(data: ReportData, cost: str) -> tuple[Axis, float]:
    """Return the axis of a cost, and what its values are multiplied with to lie on it."""
    dense = data.dense.flat()[cost]
    largest = float(max([dense, *data.complete[cost].dropna()]))
    high = largest
    if cost == "latency_ms":
        high *= 1 + data.profile.error
        if data.budget_ms is not None and data.budget_ms < _FAR * high:
            high = max(high, data.budget_ms)
    unit, scale = text.cost_unit(cost, largest)
    title = text.cost_title(cost)
    words = f"predicted {title}" if cost.startswith("latency_ms") else title
    named = f"{words}, {unit}" if unit else words
    return axis(named, 0.0, high * (1 + _MARGIN) * scale, unit=unit), scale


def _accuracy_axis(data: ReportData) -> Axis:
    """Return an axis with the whole front and as many dominated trials as stay readable.

    Where the errors of the front are of different orders, it goes by their logarithm.
    """
    top, front_low = _extent(data)
    floor = 0.5 / (data.dense.samples or _SAMPLES)
    if (1 - front_low + floor) > _ORDERS * (1 - top + floor):
        low = max(0.0, 1 - (1 - front_low) * (1 + 3 * _MARGIN))
        high = 1 - max(1 - top - floor / 2, 0.0) / 2
        return error_axis("accuracy, by the logarithm of the error", low, high, floor=floor)
    return axis("accuracy", *accuracy_range(data), label=percent_label, steps=5)


def accuracy_range(data: ReportData) -> tuple[float, float]:
    """Return a range with the whole front and as many dominated trials as stay readable."""
    accuracy, (top, front_low) = data.complete["accuracy"], _extent(data)
    least = front_low - max(top - front_low, _STRETCH)
    low = min([front_low, *accuracy[accuracy >= least]])
    margin = _MARGIN * (top - low) or 0.01
    return max(0.0, low - margin), top + margin


def _extent(data: ReportData) -> tuple[float, float]:
    """Return the highest accuracy, and the lowest one of the front."""
    shown = [row["accuracy"] for row in selectable(data)]
    return (
        float(max([data.dense.accuracy, *data.complete["accuracy"]])),
        float(min([data.dense.accuracy, *shown])),
    )


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
