"""The front as a plot for papers and notebooks; matplotlib is imported here alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import ExportError
from autoprune.files import atomic_path
from autoprune.report import text
from autoprune.report.data import ReportData
from autoprune.report.figures import accuracy_range, selectable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Formats of :func:`write_plot`.
PLOT_FORMATS = ("svg", "png", "pdf")

#: Colours that differ for the colour-blind too, and in print.
_FRONT, _CHOSEN, _DENSE, _BUDGET, _QUIET = "#0b5fb0", "#007a52", "#8d3f94", "#b24a06", "#8a96a3"
_UNIFORM = "#96660b"
#: Inches: one column of a paper of two.
_SIZE = (4.8, 3.4)
_DPI = 300


def plot_front(data: ReportData, ax: Axes | None = None) -> Axes:
    """Draw accuracy against predicted latency, and return the axes.

    Args:
        data: The run.
        ax: Where to draw; ``None`` makes a new figure of pyplot.

    Raises:
        ExportError: matplotlib is not installed.
    """
    if ax is None:
        _check()
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=_SIZE, layout="constrained")
    complete, rows = data.complete, data.front
    beaten = complete[~complete["on_front"]]
    ax.scatter(
        beaten["latency_ms"], beaten["accuracy"], s=8, color=_QUIET, alpha=0.5, lw=0, label="trials"
    )
    if data.uniform is not None:
        ladder = data.uniform.networks
        ax.plot(
            [network.latency_ms for network in ladder],
            [network.accuracy for network in ladder],
            "^",
            mfc="none",
            color=_UNIFORM,
            label="uniform pruning",
        )
    error = data.profile.error
    ax.errorbar(
        rows["latency_ms"],
        rows["accuracy"],
        xerr=error * rows["latency_ms"],
        fmt="o-" if len(data.costs) == 1 else "o",
        ms=4,
        lw=1.2,
        elinewidth=0.8,
        color=_FRONT,
        drawstyle="steps-post",
        label=f"front, ± {text.percent(error, 0)} latency error",
    )
    ax.plot(data.dense.latency_ms, data.dense.accuracy, "D", color=_DENSE, label="unpruned network")
    for row in selectable(data):
        if data.chosen is not None and row["number"] == data.chosen.trial:
            ax.plot(row["latency_ms"], row["accuracy"], "*", ms=12, color=_CHOSEN, label="chosen")
    if data.budget_ms is not None:
        words = f"budget {text.milliseconds(data.budget_ms)}"
        ax.axvline(data.budget_ms, color=_BUDGET, ls="--", lw=1, label=words)
    ax.set_xlim(left=0)
    ax.set_ylim(*accuracy_range(data))
    ax.set_xlabel(f"predicted latency on {data.profile.device}, ms")
    ax.set_ylabel("accuracy")
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax


def write_plot(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the front as a picture; the file's name says the format, see :data:`PLOT_FORMATS`.

    Raises:
        ExportError: matplotlib is not installed.
    """
    _check()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    plot_front(data, figure.add_subplot())
    kind = Path(path).suffix[1:]
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    # Nothing of the time or of chance in the file; text stays text, which editors can change.
    fixed = rc_context({"svg.hashsalt": "autoprune", "svg.fonttype": "none"})
    with fixed, atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=_DPI, metadata=dates[kind])


def _check() -> None:
    """Raise unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError:
        raise ExportError(
            "plots need matplotlib, which is not installed: pip install 'autoprune[plots]'"
        ) from None
