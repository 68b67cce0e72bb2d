"""Charts as numbers: axes, lines and marks in shares of a drawing area.

The page draws them as SVG that fits any width: texts and marks keep their size while positions are
in per cent, and lines are paths in a drawing area of :data:`EXTENT` by :data:`EXTENT` units that is
stretched. No library is needed to show them, and colours are the style sheet's business.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from autoprune.report import text

#: Units of a path along either side of the drawing area.
EXTENT = 10_000

#: About how many steps an axis has.
_STEPS = 6
#: Per cent that ticks of an axis of errors lie apart at least.
_APART = 9.0


@dataclasses.dataclass(frozen=True)
class Tick:
    """A position along an axis.

    Attributes:
        at: Per cent of the axis, from its low end.
        label: What is written there.
    """

    at: float
    label: str


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis: linear, or of accuracies by the logarithm of the error.

    Attributes:
        title: What it measures.
        low: Value at its low end.
        high: Value at its high end, above ``low``.
        ticks: Where values are written.
        unit: What stands behind a value when it is read out: ``"ms"``.
        floor: Added to errors before their logarithm, so that no error at all has a place; ``None``
            for a linear axis.
    """

    title: str
    low: float
    high: float
    ticks: tuple[Tick, ...] = ()
    unit: str = ""
    floor: float | None = None

    def shares(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return where values lie: 0 at the low end, 1 at the high one."""
        low, high = self._scaled(np.array([self.low, self.high], float))
        shares: Float[np.ndarray, " n"] = (self._scaled(values) - low) / (high - low)
        return shares

    def at(self, value: int | float) -> float:
        """Return where a value lies, in per cent from the low end; outside below 0 or above 100."""
        return 100.0 * float(self.shares(np.array([value], float))[0])

    def _scaled(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        if self.floor is None:
            return values
        # Whatever is beyond an axis of accuracies has a place above it.
        scaled: Float[np.ndarray, " n"] = -np.log(np.maximum(1.0 + self.floor - values, 1e-9))
        return scaled

    def holds(self, value: int | float) -> bool:
        """Whether a value lies on the axis."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Line:
    """A path through the drawing area.

    Attributes:
        kind: What it shows; the style sheet draws each kind its way.
        path: An SVG path in units of :data:`EXTENT`.
    """

    kind: str
    path: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """A straight line from side to side, with a text.

    Attributes:
        kind: What it shows.
        at: Per cent along the other axis.
        label: What is written beside it.
        upright: Whether it runs from bottom to top.
    """

    kind: str
    at: float
    label: str
    upright: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """One point.

    Attributes:
        kind: What it shows.
        x: Per cent from the left.
        y: Per cent from the bottom.
        label: What it says, in words.
        trial: The trial it stands for where it can be selected.
        error: Ends of its error bar, per cent from the left.
    """

    kind: str
    x: float
    y: float
    label: str
    trial: int | None = None
    error: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        label: What it shows, for those who do not see it.
        x: The horizontal axis.
        y: The vertical axis.
        key: Kind of a line or mark to its name in the legend.
        lines: Paths, the lowest first.
        rules: Straight lines.
        marks: Points, the lowest first.
        said: What the points of the line of kind ``"dominated"`` say, in its order.
    """

    label: str
    x: Axis
    y: Axis
    key: dict[str, str]
    lines: tuple[Line, ...] = ()
    rules: tuple[Rule, ...] = ()
    marks: tuple[Mark, ...] = ()
    said: tuple[str, ...] = ()

    @property
    def fixed(self) -> tuple[Mark, ...]:
        """The points that cannot be selected."""
        return tuple(mark for mark in self.marks if mark.trial is None)

    @property
    def choices(self) -> tuple[Mark, ...]:
        """The points that can."""
        return tuple(mark for mark in self.marks if mark.trial is not None)


def axis(
    title: str,
    low: float,
    high: float,
    *,
    label: Callable[[float, int], str] | None = None,
    unit: str = "",
    steps: int = _STEPS,
) -> Axis:
    """Return an axis whose ticks are round numbers.

    Args:
        title: What it measures.
        low: Value at its low end.
        high: Value at its high end; where it is not above ``low``, a little above it.
        label: Writes a value with as many decimals; by default as it is.
        unit: What stands behind a value when it is read out.
        steps: About how many steps between ticks.
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    write = label or (lambda value, decimals: f"{value:,.{decimals}f}")
    step = round_step((high - low) / steps)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(
        Tick(100.0 * (index * step - low) / (high - low), write(index * step, decimals))
        for index in range(first, last + 1)
    )
    return Axis(title, low, high, ticks, unit)


def error_axis(title: str, low: float, high: float, *, floor: float) -> Axis:
    """Return an axis of accuracies by the logarithm of the error.

    Args:
        title: What it measures.
        low: Accuracy at its low end.
        high: Accuracy at its high end, at most 1.
        floor: Added to errors, positive.
    """
    bare = Axis(title, low, high, floor=floor)
    ticks: list[Tick] = []
    for error in (0.0, *(f * 10.0**-p for p in range(5, 0, -1) for f in (1, 2, 5))):
        accuracy = 1.0 - error
        at = bare.at(accuracy)
        if bare.holds(accuracy) and all(abs(at - tick.at) > _APART for tick in ticks):
            ticks.append(
                Tick(
                    at,
                    text.percent(
                        accuracy, max(0, -math.floor(math.log10(error) + 2.001)) if error else 0
                    ),
                )
            )
    return dataclasses.replace(bare, ticks=tuple(reversed(ticks)))


def round_step(wanted: float) -> float:
    """Return 1, 2 or 5 times a power of ten: the one nearest by its ratio.

    >>> round_step(0.7), round_step(13.0), round_step(0.03)
    (0.5, 10.0, 0.02)
    """
    power = 10.0 ** math.floor(math.log10(wanted))
    return min((power * f for f in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / wanted)))


def percent_label(value: float, decimals: int) -> str:
    """Return a fraction as a percentage, two decimals less than the fraction has.

    >>> percent_label(0.875, 3).replace(text.NO_BREAK, " ")
    '87.5 %'
    """
    return text.percent(value, max(0, decimals - 2))


def staircase(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    """Return the path that keeps each value until the next one, to the end of the axis.

    Args:
        x: Horizontal axis.
        y: Vertical axis.
        points: In ascending order.
    """
    steps = [(_unit(x.at(px)), EXTENT - _unit(y.at(py))) for px, py in points]
    if not steps:
        return ""
    path = f"M{steps[0][0]} {steps[0][1]}" + "".join(f"H{px}V{py}" for px, py in steps[1:])
    return f"{path}H{max(EXTENT, steps[-1][0])}"


def band(x: Axis, y: Axis, points: Sequence[tuple[float, float]], error: float) -> str:
    """Return the area between two staircases, a fraction faster and a fraction slower."""
    early = staircase(x, y, [(px * (1 - error), py) for px, py in points])
    if not early:
        return ""
    late = [(_unit(x.at(px * (1 + error))), EXTENT - _unit(y.at(py))) for px, py in points]
    back = "".join(f"V{py}H{px}" for px, py in reversed(late))
    return f"{early}{back}V{EXTENT - _unit(y.at(points[0][1]))}Z"


def cloud(x: Axis, y: Axis, points: Float[np.ndarray, "n 2"]) -> str:
    """Return points as a path of lines without length, which round ends make dots."""
    across = np.rint(EXTENT * x.shares(points[:, 0])).astype(np.int64)
    down = np.rint(EXTENT * (1.0 - y.shares(points[:, 1]))).astype(np.int64)
    return "".join(f"M{px} {py}h0" for px, py in zip(across.tolist(), down.tolist(), strict=True))


def polyline(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    """Return the path from point to point."""
    ends = [f"{_unit(x.at(px))} {EXTENT - _unit(y.at(py))}" for px, py in points]
    return "M" + "L".join(ends) if ends else ""


def _unit(percent: float) -> int:
    return round(percent * EXTENT / 100.0)
