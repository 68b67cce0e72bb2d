"""A small plot in characters."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from rich.text import Text

Points = Float[np.ndarray, "n 2"]

_SPARKS = "▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        low: Value at the left or at the bottom.
        high: Value at the right or at the top, larger.
        cells: Characters between them, at least 1.
    """

    low: float
    high: float
    cells: int

    def cell(self, values: Float[np.ndarray, " n"]) -> np.ndarray:
        """Return the cell of each value; values outside are in the first or last cell."""
        share = (values - self.low) / (self.high - self.low)
        return np.clip(share * self.cells, 0, self.cells - 1).astype(int)

    def holds(self, values: Float[np.ndarray, " n"]) -> np.ndarray:
        """Return which values lie between the ends."""
        inside: np.ndarray = (values >= self.low) & (values <= self.high)
        return inside

    @property
    def middles(self) -> Float[np.ndarray, " cells"]:
        """The value in the middle of each cell."""
        edges = np.linspace(self.low, self.high, self.cells + 1)
        return (edges[:-1] + edges[1:]) / 2


class Chart:
    """Characters at points; what is drawn later covers what was there."""

    def __init__(self, x: Axis, y: Axis) -> None:
        """Make an empty one.

        Args:
            x: From left to right.
            y: From the bottom to the top.
        """
        self.x, self.y = x, y
        self._marks = np.full((y.cells, x.cells), " ", dtype="<U1")
        self._styles = np.full((y.cells, x.cells), "", dtype="<U16")

    def draw(self, points: Points, mark: str, style: str) -> None:
        """Draw a mark at each point that is inside.

        Args:
            points: Columns x and y.
            mark: One character.
            style: Of rich, at most 16 characters.
        """
        x, y = self.x, self.y
        inside = x.holds(points[:, 0]) & y.holds(points[:, 1])
        rows, columns = y.cell(points[inside, 1]), x.cell(points[inside, 0])
        self._marks[rows, columns], self._styles[rows, columns] = mark, style

    def upright(self, value: float, mark: str, style: str) -> None:
        """Draw a line from the bottom to the top at one x, if it is inside."""
        self.draw(np.stack([np.full(self.y.cells, value), self.y.middles], axis=1), mark, style)

    def lines(self) -> list[Text]:
        """Return the rows, the top one first."""
        rows = zip(self._marks[::-1].tolist(), self._styles[::-1].tolist(), strict=True)
        return [Text.assemble(*_runs(marks, styles), no_wrap=True) for marks, styles in rows]


def _runs(marks: list[str], styles: list[str]) -> list[tuple[str, str]]:
    """Return the characters of one row, those of one style together."""
    cells = zip(marks, styles, strict=True)
    runs = itertools.groupby(cells, key=lambda cell: cell[1])
    return [("".join(mark for mark, _ in run), style) for style, run in runs]


def staircase(front: Points, x: Axis) -> Points:
    """Return, at the middle of each cell, the highest point that is not to its right.

    Args:
        front: Points by x, each higher than those before.
        x: The axis whose cells are meant.
    """
    middles = x.middles
    place = np.searchsorted(front[:, 0], middles, side="right")
    reached = place > 0
    return np.stack([middles[reached], front[place[reached] - 1, 1]], axis=1)


def sparkline(values: Iterable[float], width: int) -> str:
    """Return values as a line of blocks, the last of each part where there are too many.

    >>> sparkline([0.0, 0.5, 1.0], 8)
    '▁▅█'
    """
    known = list(values)
    if not known:
        return ""
    if len(known) > width:
        ends = np.linspace(len(known) / width, len(known), width).astype(int) - 1
        known = [known[end] for end in ends.tolist()]
    series = np.array(known, float)
    low, spread = series.min(), series.max() - series.min()
    shares = (series - low) / spread if spread > 0 else np.zeros(len(series))
    return "".join(_SPARKS[round(share * (len(_SPARKS) - 1))] for share in shares.tolist())
