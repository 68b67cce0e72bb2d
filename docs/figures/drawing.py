"""How all figures look and are written: SVG, readable on white and on black, always the same."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

IMAGES = Path(__file__).resolve().parents[1] / "images"

BLUE, ORANGE, GREEN, PURPLE, GREY = "#3b7dd8", "#d97a1e", "#2f9e63", "#9a5cc6", "#808080"

_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "autoprune",
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches wide and high."""
    mpl.rcParams.update(_STYLE)
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, name: str, folder: Path = IMAGES) -> Path:
    """Write a figure as ``name.svg`` and return where."""
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path
