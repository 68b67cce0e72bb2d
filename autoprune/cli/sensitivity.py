"""What ``autoprune inspect --sensitivity`` adds: the damage curve of every group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import SettingsError

if TYPE_CHECKING:
    from autoprune.network.network import Network

#: Shares of a group's units that are kept in the columns of the table.
KEPT = (0.75, 0.5, 0.25)
#: Training samples the damage is computed from; their labels are not read.
SAMPLES = 512
_MARKS = "▁▂▃▄▅▆▇█"

Curve = Float[np.ndarray, " widths"]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How much goes wrong when units or blocks go, the rest merged as well as it can be.

    Attributes:
        samples: Samples it was computed from.
        groups: For each group ``damage[k]`` with k units gone: the relative error in the outputs of
            all weights that read it, summed over them; ``None`` where no such weight is known.
        blocks: For each removable block how far answers move without it, over their spread.
    """

    samples: int
    groups: Mapping[str, Curve | None]
    blocks: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "samples": self.samples,
            "groups": {
                name: None if curve is None else [round(float(value), 6) for value in curve]
                for name, curve in self.groups.items()
            },
            "blocks": {name: round(value, 6) for name, value in self.blocks.items()},
        }


def sensitivity(network: Network, data: str) -> Sensitivity:
    """Return the damage curves of a network on calibration samples of a task.

    Args:
        network: A traced network with the values of its weights.
        data: The task, as ``--data`` takes it.

    Raises:
        SettingsError: The network was traced without weights.
        TaskError: The task cannot be loaded.
    """
    from autoprune.pruning.distances import answer_distances
    from autoprune.pruning.merge import Calibrated
    from autoprune.pruning.plan import PruningPlan
    from autoprune.tasks.load import load_task

    if network.checked == "shapes":
        raise SettingsError("--sensitivity needs the values of the weights; add --values")
    batches = load_task(data).calibration(SAMPLES)
    calibrated = Calibrated.of(network, batches)
    eliminations = {group.name: calibrated.elimination(group) for group in network.groups}
    names = [block.name for block in network.blocks]
    plans = [PruningPlan({}, (name,)) for name in names]
    distances = answer_distances(network, batches, plans, realise="reconstruct")
    return Sensitivity(
        samples=sum(len(inputs) for inputs, _ in batches),
        groups={name: None if e is None else e.damage for name, e in eliminations.items()},
        blocks=dict(zip(names, distances, strict=True)),
    )


def show(console: Console, found: Sensitivity) -> None:
    """Print the curves as a table, the most sensitive group at the top."""
    known = {name: curve for name, curve in found.groups.items() if curve is not None}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right")
    for share in KEPT:
        table.add_column(f"{100 * share:.0f} % kept", justify="right")
    table.add_column("one to all kept")
    most = max((float(curve[-2]) for curve in known.values()), default=1.0)
    for name, curve in sorted(known.items(), key=lambda item: -_at(item[1], 0.5)):
        values = [f"{_at(curve, share):.3g}" for share in KEPT]
        table.add_row(escape(name), str(len(curve) - 1), *values, _line(curve, most))
    console.print(
        f"\ndamage from {found.samples} samples, labels not read: relative error in what reads a "
        "group, the rest merged"
    )
    console.print(table)
    unknown = [name for name, curve in found.groups.items() if curve is None]
    if unknown:
        console.print(f"no known reader: {escape(', '.join(unknown))}", soft_wrap=True)
    if found.blocks:
        ordered = sorted(found.blocks.items(), key=lambda item: item[1])
        told = ", ".join(f"{name} {value:.2g}" for name, value in ordered)
        console.print(f"blocks, cheapest first: {escape(told)}", soft_wrap=True)


def plot(found: Sensitivity, model: str, path: Path) -> None:
    """Write the curves as one HTML file that works offline.

    Raises:
        SettingsError: The file cannot be written.
    """
    import plotly.graph_objects as go

    from autoprune.files import write_atomically

    figure = go.Figure(
        layout={
            "title": f"{model}: damage by the share of units that are gone",
            "xaxis": {"title": "units gone", "tickformat": ".0%", "range": [0, 1]},
            "yaxis": {"title": "relative error in what reads the group"},
        }
    )
    for name, curve in found.groups.items():
        if curve is not None:
            gone = np.linspace(0, 1, len(curve))
            figure.add_trace(go.Scatter(x=gone[:-1], y=curve[:-1], mode="lines", name=name))
    try:
        write_atomically(path, figure.to_html(include_plotlyjs=True))
    except OSError as error:
        raise SettingsError(f"cannot write the plot {path}: {error.strerror}") from None


def _at(curve: Curve, kept: float) -> float:
    """Return the damage where a share of the units is kept, at least one."""
    units = len(curve) - 1
    return float(curve[units - max(1, round(kept * units))])


def _line(curve: Curve, most: float) -> str:
    """Return a curve as one line of marks, from one unit kept to all of them."""
    places = np.linspace(len(curve) - 2, 0, 12).round().astype(int)
    shares = np.sqrt(np.clip(curve[places] / (most or 1.0), 0.0, 1.0))
    return "".join(_MARKS[int(share * (len(_MARKS) - 1))] for share in shares)
