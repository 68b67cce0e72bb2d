"""The page's figures, drawn by plotly.

Colours are names of the page's CSS variables; the page's script puts in what they stand for, which
depends on whether the reader's screen is light or dark. Plotly reads text as a kind of HTML, so
every name is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from autoprune.report import text
from autoprune.report.data import GroupWidth, KernelTime, ReportData

#: Kernels shown before the rest is summed up.
TOP_KERNELS = 12
#: Dominated trials stretch the accuracy axis by the span of the front, or by this if it is more.
_STRETCH = 0.05
#: A budget up to this many times the slowest network is shown; beyond, it would squeeze the rest.
_FAR = 1.5
#: Names on an axis keep their end, which tells neighbours apart; pointing at a bar shows all of it.
_LABEL_LENGTH = 22


def front(data: ReportData, cost: str = "latency_ms") -> go.Figure:
    """Return accuracy against a cost: the front with the profile's error, and what it beats.

    Args:
        data: The run.
        cost: Column of the cost. Along one of several the front is no staircase, so its points
            stand alone.
    """
    complete, error, dense = data.complete, data.profile.error, data.dense.flat()
    largest = max([dense[cost], *complete[cost]])
    predicted = cost == "latency_ms"
    figure = _figure(
        height=470,
        showlegend=True,
        legend={"y": 1.06},
        xaxis={
            "title": _axis_title(cost),
            "rangemode": "nonnegative",
            "autorangeoptions": {"clipmax": _FAR * largest},
        },
        yaxis={"title": "accuracy", "tickformat": "~%", "range": _accuracy_range(data)},
    )
    dominated = complete[~complete["on_front"]].to_dict("records")
    figure.add_trace(_networks("dominated trials", "dominated", dominated, error, cost))
    figure.update_traces(marker={"size": 7, "opacity": 0.35})
    if data.budget_ms is not None and predicted:
        figure.add_vline(
            data.budget_ms,
            line={"color": "var(--budget)", "dash": "dash", "width": 2},
            annotation={
                "text": f"budget {text.milliseconds(data.budget_ms)}",
                "font": {"color": "var(--budget)"},
            },
            annotation_position="top",
        )
    bars = {
        "visible": predicted,
        "type": "percent",
        "value": 100 * error,
        "color": "var(--error)",
        "thickness": 1.5,
        "width": 0,
    }
    figure.add_trace(
        _networks(
            f"Pareto front, ± {text.percent(error, 0)} latency error"
            if predicted
            else "Pareto front",
            "front",
            data.front.to_dict("records"),
            error,
            cost,
        ).update(
            mode="lines+markers" if len(data.costs) == 1 else "markers",
            line={"shape": "hv", "width": 2},
            error_x=bars,
        )
    )
    if data.chosen is not None:
        chosen = complete[complete["number"] == data.chosen.trial].to_dict("records")
        star = {"size": 16, "symbol": "star"}
        figure.add_trace(
            _networks("chosen network", "chosen", chosen, error, cost).update(
                marker=star, error_x=bars
            )
        )
    diamond = {"size": 12, "symbol": "diamond"}
    return figure.add_trace(
        _networks("dense network", "dense", [dense], error, cost).update(
            marker=diamond, error_x=bars
        )
    )


def _axis_title(cost: str) -> str:
    if cost == "latency_ms":
        return "predicted latency, ms"
    unit = text.cost(1.0, cost).partition(text.NO_BREAK)[2]
    title = _plain(text.cost_title(cost))
    return f"{title}, {unit}" if unit else title


def hypervolume(data: ReportData) -> go.Figure:
    """Return the hypervolume over the finished trials."""
    figure = _figure(
        height=300,
        xaxis={"title": "trials finished", "rangemode": "tozero"},
        yaxis={"title": "hypervolume", "tickformat": "~%"},
    )
    return figure.add_trace(
        go.Scatter(
            x=np.arange(1, len(data.hypervolume) + 1),
            y=np.array(data.hypervolume, float),
            mode="lines" if len(data.hypervolume) > 1 else "markers",
            line={"color": "var(--front)", "shape": "hv", "width": 2},
            hovertemplate="%{x} trials finished: %{y:.2%}<extra></extra>",
        )
    )


def widths(groups: Sequence[GroupWidth]) -> go.Figure:
    """Return the share of its units that each channel group keeps, input at the top."""
    shares = [group.kept / group.size for group in groups]
    figure = _bars(
        {
            "dense network": ("slot", [1.0 for _ in groups]),
            "chosen network": ("chosen", shares),
        },
        names=[group.name for group in groups],
        details=[
            f"keeps {group.kept} of {group.size} ({text.percent(share, 0)})"
            for group, share in zip(groups, shares, strict=True)
        ],
        row_height=22,
    )
    figure.data[0].text = [f"{group.kept} / {group.size}" for group in groups]
    share_axis = {"range": [0, 1], "tickvals": [0, 0.5, 1], "tickformat": ".0%"}
    return figure.update_layout(barmode="overlay", xaxis={"title": "units kept", **share_axis})


def latency(kernels: Sequence[KernelTime]) -> go.Figure:
    """Return the time of the kernels slowest in the dense network, in both networks."""
    slowest = sorted(kernels, key=lambda kernel: -kernel.dense_ms)
    shown, rest = slowest[:TOP_KERNELS], slowest[TOP_KERNELS:]
    if rest:
        shown.append(
            KernelTime(
                name=f"{len(rest)} other kernels" if len(rest) > 1 else "1 other kernel",
                kind="together",
                dense_ms=math.fsum(kernel.dense_ms for kernel in rest),
                chosen_ms=math.fsum(kernel.chosen_ms for kernel in rest),
            )
        )
    figure = _bars(
        {
            "dense network": ("dense", [kernel.dense_ms for kernel in shown]),
            "chosen network": ("chosen", [kernel.chosen_ms for kernel in shown]),
        },
        names=[kernel.name for kernel in shown],
        details=[
            f"{_plain(kernel.kind)}<br>dense {text.milliseconds(kernel.dense_ms)}<br>"
            f"chosen {text.milliseconds(kernel.chosen_ms) if kernel.chosen_ms else 'gone'}"
            for kernel in shown
        ],
        row_height=38,
    )
    for trace in figure.data:
        trace.text = [text.significant(ms) if ms else "gone" for ms in trace.x]
    most = max(max(trace.x) for trace in figure.data)
    return figure.update_layout(xaxis={"title": "predicted time, ms", "range": [0, most]})


def _figure(**layout: Any) -> go.Figure:
    """Return an empty figure in the page's style."""
    axis = {
        "automargin": True,
        "gridcolor": "var(--grid)",
        "linecolor": "var(--dominated)",
        "zeroline": False,
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    style = go.layout.Template(
        layout={
            "font": {"family": "var(--font)", "size": 13, "color": "var(--quiet)"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
            "hovermode": "closest",
            "hoverlabel": {
                "align": "left",
                "bgcolor": "var(--paper)",
                "bordercolor": "var(--quiet)",
                "font": {"family": "var(--font)", "color": "var(--ink)"},
            },
            "xaxis": axis,
            "yaxis": axis,
        }
    )
    # Whoever has zoomed in stays there when the colours change.
    return go.Figure(layout={"template": style, "uirevision": "kept", **layout})


def _networks(
    name: str, color: str, rows: Sequence[Mapping[Any, Any]], error: float, cost: str
) -> go.Scatter:
    """Return networks as points; ``rows`` have the fields of ``NetworkFacts`` or of a trial."""
    return go.Scatter(
        name=name,
        x=np.array([row[cost] for row in rows], float),
        y=np.array([row["accuracy"] for row in rows], float),
        mode="markers",
        marker={"color": f"var(--{color})", "size": 9},
        hovertext=[_network_text(name, row, error, cost) for row in rows],
        hoverinfo="text",
    )


def _network_text(name: str, row: Mapping[Any, Any], error: float, cost: str) -> str:
    """Return everything known about one network, a value per line."""
    lines = [
        f"trial {row['number']}" if "number" in row else name,
        f"accuracy {text.percent(row['accuracy'], 2)}",
        f"latency {text.milliseconds(row['latency_ms'])} ± {text.percent(error, 0)}",
        f"loss {text.significant(row['loss'])}",
        f"{text.count(row['macs'])} MACs, {text.count(row['params'])} parameters",
    ]
    if cost not in ("latency_ms", "macs", "params"):
        lines.append(f"{_plain(text.cost_title(cost))} {text.cost(row[cost], cost)}")
    if not pd.isna(row["test_accuracy"]):
        lines.insert(2, f"test accuracy {text.percent(row['test_accuracy'], 2)}")
    if "seconds" in row:
        lines.append(f"evaluated in {text.significant(row['seconds'])} s")
    return "<br>".join(lines)


def _accuracy_range(data: ReportData) -> tuple[float, float]:
    """Return a range with the whole front and as many dominated trials as stay readable."""
    accuracy = data.complete["accuracy"]
    top = max([data.dense.accuracy, *accuracy])
    front_low = min([data.dense.accuracy, *data.front["accuracy"]])
    floor = front_low - max(top - front_low, _STRETCH)
    low = min([front_low, *accuracy[accuracy >= floor]])
    margin = 0.08 * (top - low) or 0.01
    return max(0.0, low - margin), top + margin


def _bars(
    series: Mapping[str, tuple[str, Sequence[float]]],
    *,
    names: Sequence[str],
    details: Sequence[str],
    row_height: int,
) -> go.Figure:
    """Return rows of horizontal bars, the first on top.

    Args:
        series: Legend entry to colour and lengths, one per row.
        names: What the rows are called. Two may have the same name, so rows are numbered.
        details: What to say about a row besides its name, as plotly's HTML.
        row_height: Height of a row in pixels.
    """
    rows = list(range(len(names)))
    short = [
        name if len(name) <= _LABEL_LENGTH else f"…{name[1 - _LABEL_LENGTH :].lstrip('.')}"
        for name in names
    ]
    figure = _figure(
        height=90 + row_height * len(names),
        bargap=0.25,
        legend={"traceorder": "normal"},
        margin={"r": 75},  # for the numbers beside full bars
        xaxis={"fixedrange": True},
        yaxis={
            "fixedrange": True,
            "range": [len(names) - 0.5, -0.5],
            "showgrid": False,
            "ticklabelstandoff": 6,
            "tickvals": rows,
            "ticktext": [_plain(name) for name in short],
        },
    )
    for name, (color, lengths) in series.items():
        figure.add_bar(
            name=name,
            orientation="h",
            x=lengths,
            y=rows,
            marker={"color": f"var(--{color})", "line": {"width": 0}},
            hovertext=[
                f"{_plain(row)}<br>{detail}" for row, detail in zip(names, details, strict=True)
            ],
            hoverinfo="text",
            textposition="outside",
            textfont={"size": 11},
            cliponaxis=False,
        )
    return figure


def _plain(name: str) -> str:
    """Return ``name`` so that plotly shows it as it is."""
    return html.escape(name, quote=False)
