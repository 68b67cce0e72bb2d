"""Geometry of the page's figures: where marks, lines and ticks lie, in per cent of the plot.

Positions count from the left and from the top. The template draws them; since every position is
relative, a figure fits any screen while its text keeps its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from autoprune.report import text
from autoprune.report.data import GroupWidth, ReportData

#: More dominated trials than this only slow the page down; the rest is left out evenly.
MAX_DOMINATED = 1500
#: Dominated trials stretch the accuracy axis by the span of the front, or by this if it is more.
_STRETCH = 0.05


@dataclasses.dataclass(frozen=True)
class Tick:
    """A labelled position on an axis.

    Attributes:
        at: Position in per cent.
        label: What stands there.
    """

    at: float
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale.

    Attributes:
        low: Value at 0 per cent of the way.
        high: Value at 100 per cent of the way.
        ticks: Values to label.
        percent: Whether the values are fractions shown as percentages.
        upright: Whether it runs from the bottom up.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    percent: bool = False
    upright: bool = False

    @classmethod
    def covering(
        cls, low: float, high: float, *, percent: bool = False, upright: bool = False
    ) -> Axis:
        """Return an axis from ``low`` to ``high`` with about five round ticks."""
        if not high > low:
            low, high = low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9
        return cls(
            low=low, high=high, ticks=round_ticks(low, high), percent=percent, upright=upright
        )

    def at(self, value: float) -> float:
        """Return where ``value`` lies, in per cent of the plot."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * (1 - share if self.upright else share), 3)

    @property
    def labels(self) -> tuple[Tick, ...]:
        """The ticks with as many decimals as their step needs."""
        scale = 100 if self.percent else 1
        unit = " %" if self.percent else ""
        step = scale * (self.ticks[1] - self.ticks[0]) if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return tuple(
            Tick(self.at(tick), f"{scale * tick:,.{decimals}f}{unit}") for tick in self.ticks
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its values.

    Attributes:
        x: From the left, per cent.
        y: From the top, per cent.
        title: Its values in words.
        chosen: Whether it is the chosen network.
    """

    x: float
    y: float
    title: str
    chosen: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontFigure:
    """Accuracy against latency.

    Attributes:
        x: Latency, ms.
        y: Accuracy, fraction.
        line: The best accuracy reachable at each latency, as SVG points.
        band: The same within the profile's error, as SVG points.
        front: Networks on the front, fastest first.
        dominated: Networks that are not.
        dense: The network before pruning.
        budget: Position of the budget, ``None`` where there is none or it is off the chart.
        left_out: Dominated networks not drawn because there are too many.
        below: Dominated networks that lie below the chart.
    """

    x: Axis
    y: Axis
    line: str
    band: str
    front: tuple[Mark, ...]
    dominated: tuple[Mark, ...]
    dense: Mark
    budget: float | None
    left_out: int
    below: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveFigure:
    """One growing value over the trials.

    Attributes:
        x: Finished trials.
        y: The value, a fraction.
        line: The curve as SVG points.
        marks: The trials at which it grew.
    """

    x: Axis
    y: Axis
    line: str
    marks: tuple[Mark, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A column of the widths figure.

    Attributes:
        x: Left edge, per cent.
        width: Per cent of the plot.
        height: Kept share, per cent.
        title: Its values in words.
    """

    x: float
    width: float
    height: float
    title: str


def round_ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Return the multiples of 1, 2 or 5 times a power of ten in [low, high], about ``about`` many.

    >>> round_ticks(0.0, 18.2)
    (0.0, 5.0, 10.0, 15.0)
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / raw))) * power
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def front_figure(data: ReportData) -> FrontFigure:
    """Return accuracy against latency for every complete trial."""
    front, complete = data.front, data.complete
    dominated = complete[~complete["on_front"]]
    x, y = _latency_axis(data), _accuracy_axis(data)
    below = dominated["accuracy"] < y.low
    shown = dominated[~below]
    rows = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), MAX_DOMINATED)).astype(int))
    steps = front[["latency_ms", "accuracy"]].to_numpy(float)
    dense, error = data.dense, data.profile.error
    budget = None if data.budget_ms is None or data.budget_ms > x.high else x.at(data.budget_ms)
    return FrontFigure(
        x=x,
        y=y,
        line=_svg_points(_stairs(steps, dense.latency_ms), x, y),
        band=_svg_points(_band(steps, error, dense.latency_ms), x, y),
        front=_trial_marks(data, front, x, y),
        dominated=_trial_marks(data, shown.iloc[rows], x, y),
        dense=Mark(
            x=x.at(dense.latency_ms),
            y=y.at(dense.accuracy),
            title=f"dense network: {text.percent(dense.accuracy, 2)}, "
            f"{text.milliseconds(dense.latency_ms)}",
        ),
        budget=budget,
        left_out=len(shown) - len(rows),
        below=int(below.sum()),
    )


def hypervolume_figure(data: ReportData) -> CurveFigure | None:
    """Return the hypervolume over the trials, ``None`` before the first one."""
    values = np.array(data.hypervolume, float)
    if not len(values):
        return None
    margin = 0.08 * (np.ptp(values) or 0.1)
    x = Axis.covering(0.0, float(len(values)))
    x = dataclasses.replace(x, ticks=tuple(tick for tick in x.ticks if tick == round(tick)))
    y = Axis.covering(
        max(0.0, float(values.min() - margin)),
        float(values.max() + margin),
        percent=True,
        upright=True,
    )
    trials = np.arange(1, len(values) + 1)
    steps = np.stack([trials, values], axis=1)
    grew = np.flatnonzero(np.diff(values, prepend=-np.inf) > 0)
    numbers = data.trials["number"].to_numpy()
    marks = tuple(
        Mark(
            x=x.at(float(trials[row])),
            y=y.at(float(values[row])),
            title=f"trial {numbers[row]}, {trials[row]} finished: "
            f"{text.percent(float(values[row]), 2)}",
        )
        for row in grew
    )
    return CurveFigure(x=x, y=y, line=_svg_points(_stairs(steps, x.high), x, y), marks=marks)


def width_bars(widths: Sequence[GroupWidth]) -> tuple[Bar, ...]:
    """Return one bar per channel group, as high as the share of its units that is kept."""
    slot = 100 / max(len(widths), 1)
    return tuple(
        Bar(
            x=round(slot * (index + 0.1), 3),
            width=round(0.8 * slot, 3),
            height=round(100 * group.kept / group.size, 3),
            title=f"{group.name}: keeps {group.kept} of {group.size}",
        )
        for index, group in enumerate(widths)
    )


def _latency_axis(data: ReportData) -> Axis:
    """Return an axis that shows every network and its error, from zero where that costs little."""
    values = [data.dense.latency_ms, *data.complete["latency_ms"]]
    low, high = min(values), max(values)
    if data.budget_ms is not None and data.budget_ms < 1.5 * high:
        high = max(high, data.budget_ms)
    margin = 0.06 * (high - low)
    if low < 0.2 * high:
        return Axis.covering(0.0, high + margin)
    return Axis.covering(max(0.0, low * (1 - data.profile.error) - margin), high + margin)


def _accuracy_axis(data: ReportData) -> Axis:
    """Return an axis that shows the whole front and as many dominated trials as stay readable."""
    accuracy = data.complete["accuracy"]
    top = max([data.dense.accuracy, *accuracy])
    front_low = min([data.dense.accuracy, *data.front["accuracy"]])
    floor = front_low - max(top - front_low, _STRETCH)
    low = min([front_low, *accuracy[accuracy >= floor]])
    margin = 0.08 * (top - low) or 0.01
    # The margin above 100 % is kept so that marks are not cut; no tick stands there.
    axis = Axis.covering(max(0.0, low - margin), top + margin, percent=True, upright=True)
    return dataclasses.replace(axis, ticks=tuple(tick for tick in axis.ticks if tick <= 1))


def _trial_marks(data: ReportData, rows: pd.DataFrame, x: Axis, y: Axis) -> tuple[Mark, ...]:
    chosen = None if data.chosen is None else data.chosen.trial
    return tuple(
        Mark(
            x=x.at(row["latency_ms"]),
            y=y.at(row["accuracy"]),
            title=f"trial {row['number']}: {text.percent(row['accuracy'], 2)}, "
            f"{text.milliseconds(row['latency_ms'])} "
            f"± {text.percent(data.profile.error, 0)}, {text.count(row['macs'])} MACs, "
            f"{text.count(row['params'])} parameters",
            chosen=row["number"] == chosen,
        )
        for row in rows.to_dict("records")
    )


def _stairs(steps: Float[np.ndarray, "n 2"], end: float) -> Float[np.ndarray, "m 2"]:
    """Return the corners of the step function through ``steps``, held until ``end``."""
    if not len(steps):
        return np.zeros((0, 2))
    until = np.append(steps[1:, 0], max(end, steps[-1, 0]))
    corners = np.stack([steps, np.stack([until, steps[:, 1]], axis=1)], axis=1)
    return corners.reshape(-1, 2)


def _band(steps: Float[np.ndarray, "n 2"], error: float, end: float) -> Float[np.ndarray, "m 2"]:
    """Return the outline between the step functions for the fastest and slowest true latency."""
    fast = _stairs(steps * [1 - error, 1], end)
    slow = _stairs(steps * [1 + error, 1], end)
    return np.concatenate([fast, slow[::-1]])


def _svg_points(corners: Float[np.ndarray, "m 2"], x: Axis, y: Axis) -> str:
    return " ".join(f"{x.at(float(a)):g},{y.at(float(b)):g}" for a, b in corners)
