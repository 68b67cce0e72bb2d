"""One page about several runs: their fronts on each device, their progress, how they were made."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence

from autoprune.errors import RunError
from autoprune.files import write_atomically
from autoprune.report import text
from autoprune.report.chart import Chart, Line, Mark, axis, percent_label, staircase
from autoprune.report.data import NetworkFacts, ReportData
from autoprune.report.html import embedded, environment

#: Runs that can be told apart by colour and by the dashes of their lines.
MOST = 12
_COLOURS = 6
_MARGIN = 0.06


@dataclasses.dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        name: What it is called on the page.
        kind: Its colour and dashes.
        data: What it found.
        best: The network it recommends.
    """

    name: str
    kind: str
    data: ReportData
    best: NetworkFacts | None


def write_comparison(runs: Mapping[str, ReportData], path: str | os.PathLike[str]) -> None:
    """Write the page about several runs to ``path``; its folder must exist.

    Args:
        runs: What runs found, by the names that the page gives them.
        path: The file.

    Raises:
        RunError: There are fewer than two runs, or too many to be told apart.
    """
    content = render_comparison(runs)
    write_atomically(path, content.encode("utf-8", "backslashreplace"))


def render_comparison(runs: Mapping[str, ReportData]) -> str:
    """Return the page about several runs, see :func:`write_comparison`."""
    if not 2 <= len(runs) <= MOST:
        raise RunError(f"a comparison takes 2 to {MOST} runs, got {len(runs)}")
    compared = [
        Compared(name, _kind(index), data, data.chosen_facts)
        for index, (name, data) in enumerate(runs.items())
    ]
    devices = dict.fromkeys(run.data.profile.name for run in compared)
    charts = {
        f"On {name}": _fronts([run for run in compared if run.data.profile.name == name])
        for name in devices
    }
    if len(devices) > 1:
        charts["All devices, relative to the unpruned network"] = _fronts(compared, relative=True)
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            runs=compared,
            charts=charts,
            progress=_progress(compared),
            settings=_differences(compared),
            **embedded(),
        )
    )


def _fronts(runs: Sequence[Compared], *, relative: bool = False) -> Chart:
    """Return the fronts of runs, their recommended networks, and what they began with.

    Args:
        runs: The runs; on one device unless ``relative``.
        relative: Show latencies as shares of the unpruned network's.
    """
    found = {run.name: _points(run, relative) for run in runs}
    dense = {run.name: _at(run.data.dense, run, relative) for run in runs}
    everything = [*itertools.chain(*found.values()), *dense.values()]
    lowest, highest = (pick(accuracy for _, accuracy in everything) for pick in (min, max))
    margin = _MARGIN * (highest - lowest) or 0.01
    x = axis(
        "share of the unpruned network's latency" if relative else "predicted latency, ms",
        0.0,
        max(cost for cost, _ in everything) * (1 + _MARGIN),
        label=percent_label if relative else None,
    )
    y = axis("accuracy", max(0.0, lowest - margin), highest + margin, label=percent_label, steps=5)

    def mark(kind: str, point: tuple[float, float], name: str) -> Mark:
        words = f"{name}: {text.percent(point[1], 2)}"
        return Mark(kind=kind, x=x.at(point[0]), y=y.at(point[1]), label=words)

    return Chart(
        label=f"Fronts of {len(runs)} runs",
        x=x,
        y=y,
        key={run.kind: run.name for run in runs} | {"dense": "unpruned network"},
        lines=tuple(Line(run.kind, staircase(x, y, found[run.name])) for run in runs),
        marks=(
            *(mark("dense", dense[run.name], f"unpruned network of {run.name}") for run in runs),
            *(mark(run.kind, point, run.name) for run in runs for point in found[run.name]),
        ),
    )


def _kind(index: int) -> str:
    return f"run{index % _COLOURS + 1}" + (" dashed" if index >= _COLOURS else "")


def _points(run: Compared, relative: bool) -> list[tuple[float, float]]:
    """Return latency and accuracy along a run's front."""
    rows = run.data.front.to_dict("records")
    return [_at(NetworkFacts.of_row(row), run, relative) for row in rows]


def _at(network: NetworkFacts, run: Compared, relative: bool) -> tuple[float, float]:
    scale = run.data.dense.latency_ms if relative else 1.0
    return network.latency_ms / scale, network.accuracy


def _progress(runs: Sequence[Compared]) -> Chart:
    """Return the hypervolume of every run over its finished trials."""
    x = axis("trials finished", 0.0, float(max(1, *(len(run.data.hypervolume) for run in runs))))
    top = max(0.01, *(max(run.data.hypervolume, default=0.0) for run in runs))
    y = axis("hypervolume", 0.0, min(1.0, 1.08 * top), label=percent_label, steps=4)

    def path(values: Sequence[float]) -> str:
        risen = [i for i, value in enumerate(values) if not i or value > values[i - 1]]
        return staircase(x, y, [(float(i + 1), values[i]) for i in risen])

    return Chart(
        label=f"Hypervolume of {len(runs)} runs",
        x=x,
        y=y,
        key={run.kind: run.name for run in runs},
        lines=tuple(Line(run.kind, path(run.data.hypervolume)) for run in runs),
    )


def _differences(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return the settings that are not the same in all runs, with their values in each."""
    every = [dict(text.flat_settings(run.data.run.settings)) for run in runs]
    names = dict.fromkeys(itertools.chain(*every))
    rows = [(name, [values.get(name, text.MISSING) for values in every]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
