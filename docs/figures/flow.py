"""What flows through a search, as boxes and arrows."""

from __future__ import annotations

from drawing import BLUE, GREEN, GREY, ORANGE, new_figure, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_ONCE = ("trace\none forward pass", "verify\ncut every group", "calibrate\nunlabelled images")
_EACH = (
    "propose\nratios, blocks",
    "project\nonto the budget",
    "cut and\nreconstruct",
    "score\nsearch split",
)
_END = ("Pareto front", "test split,\nread once", "report, network,\nONNX")
_WIDTH, _HEIGHT, _STEP = 1.7, 0.8, 2.1


def draw() -> Figure:
    """Return the three rows of a search: once per network, once per candidate, at the end."""
    figure = new_figure(8.2, 3.4)
    axis = figure.subplots()
    rows = (("once", _ONCE, BLUE), ("per candidate", _EACH, ORANGE), ("at the end", _END, GREEN))
    for number, (words, boxes, colour) in enumerate(rows):
        y = -1.5 * number
        axis.text(-0.2, y + _HEIGHT / 2, words, ha="right", va="center", color=colour)
        for place, text in enumerate(boxes):
            _box(axis, place * _STEP, y, text, colour)
            if place:
                _arrow(axis, (place * _STEP - _STEP + _WIDTH, y + 0.4), (place * _STEP, y + 0.4))
    for row in (0, 1):
        _arrow(axis, (0.85, -1.5 * row), (0.85, -1.5 * (row + 1) + _HEIGHT))
    last = (len(_EACH) - 1) * _STEP + _WIDTH / 2
    axis.annotate(
        "",
        (1.3, -1.5 + _HEIGHT),
        (last, -1.5 + _HEIGHT),
        arrowprops={"arrowstyle": "->", "color": GREY, "connectionstyle": "arc3,rad=0.15"},
    )
    axis.text(4.2, -0.27, "results", ha="center", color=GREY, fontsize=8)
    axis.set_xlim(-2, 8.2)
    axis.set_ylim(-3.2, 1)
    axis.axis("off")
    return figure


def _box(axis: Axes, x: float, y: float, text: str, colour: str) -> None:
    axis.text(
        x + _WIDTH / 2,
        y + _HEIGHT / 2,
        text,
        ha="center",
        va="center",
        fontsize=8,
        bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": colour},
    )


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY})


if __name__ == "__main__":
    print(save(draw(), "flow"))
