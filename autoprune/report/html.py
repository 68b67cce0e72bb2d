"""One self-contained HTML page about a run: no network, no other file, every string escaped.

The page holds plotly.js from the installed package and the figures of
:mod:`autoprune.report.figures` as JSON. Its styles and scripts are named by their hashes in a
Content-Security-Policy, so nothing else can run or be fetched, whatever a model name or an error
message holds.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import os
from importlib import resources

import jinja2
import plotly.graph_objects as go
import plotly.offline
from markupsafe import Markup

from autoprune.files import write_atomically
from autoprune.report import figures, text
from autoprune.report.data import ReportData
from autoprune.strategy.goals import column

#: Trial numbers listed per reason of failure.
_LISTED = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Trials that failed for the same reason.

    Attributes:
        reason: The reason as recorded.
        status: Their status.
        count: How many there are.
        numbers: Their numbers, the first few.
    """

    reason: str
    status: str
    count: int
    numbers: str


def write_report(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the page to ``path``; its folder must exist."""
    # Undecodable file names in a reason come as lone surrogates, which UTF-8 cannot hold.
    write_atomically(path, render(data).encode("utf-8", "backslashreplace"))


def render(data: ReportData) -> str:
    """Return the page; the same data give the same text."""
    style, script = _packaged("page.css"), _packaged("page.js")
    plotly_js = plotly.offline.get_plotlyjs()
    fronts = {name: figures.front(data, name) for name in map(column, data.costs)}
    lowest = next(iter(fronts.values())).layout.yaxis.range[0]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            chosen=data.chosen_facts,
            fronts=fronts,
            extra=[name for name in data.extra if name in data.dense.extra],
            below=int((data.complete["accuracy"] < lowest).sum()),
            figures=figures,
            rows=data.front.to_dict("records"),
            tested=bool(data.front["test_accuracy"].notna().any()),
            raised=_raised(data),
            failures=_failures(data),
            settings=text.flat_settings(data.run.settings),
            sections=_sections(data),
            trial_count=_trial_count(data),
            over_budget=_over_budget(data),
            style=Markup(style),
            # Plotly adds an empty style element and rules to it from its script. The style of its
            # maps, which the page has none of, stays blocked; browsers note that in the console.
            style_hashes=" ".join(map(_csp_hash, (style, ""))),
            scripts=(Markup(plotly_js), Markup(script)),
            script_hashes=" ".join(map(_csp_hash, (plotly_js, script))),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoprune.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "milliseconds": text.milliseconds,
        "percent": text.percent,
        "points": text.points,
        "change": text.change,
        "count": text.count,
        "cost": text.cost,
        "cost_title": text.cost_title,
        "significant": text.significant,
        "json": _json,
    }
    return environment


def _packaged(name: str) -> str:
    return resources.files("autoprune.report").joinpath(name).read_text(encoding="utf-8")


def _json(figure: go.Figure) -> Markup:
    """Return a figure as JSON in which no character can end the script element around it."""
    return Markup(figure.to_json(validate=False, engine="json"))


def _csp_hash(content: str) -> str:
    """Return ``content``'s hash as a Content-Security-Policy names it."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _raised(data: ReportData) -> list[tuple[int, int, float]]:
    """Return (trials finished, number of the last one, hypervolume) wherever it grew."""
    raised, last = [], -math.inf
    pairs = zip(data.trials["number"], data.hypervolume, strict=True)
    for finished, (number, hypervolume) in enumerate(pairs, start=1):
        if hypervolume > last:
            raised.append((finished, int(number), hypervolume))
            last = hypervolume
    return raised


def _failures(data: ReportData) -> list[Failure]:
    """Return the reasons of failure, the most frequent first."""
    failures = []
    for (reason, status), rows in data.failed.groupby(["reason", "status"], sort=True):
        numbers = sorted(int(number) for number in rows["number"])
        more = f" and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else ""
        listed = ", ".join(map(str, numbers[:_LISTED])) + more
        failures.append(
            Failure(reason=str(reason), status=str(status), count=len(numbers), numbers=listed)
        )
    return sorted(failures, key=lambda failure: -failure.count)


def _sections(data: ReportData) -> list[tuple[str, str]]:
    """Return (anchor, title) of the sections the page has."""
    sections = [("front", "Front")]
    if data.chosen is not None:
        sections.append(("widths", "Chosen network"))
        if data.chosen.kernels:
            sections.append(("latency", "Latency"))
    if data.hypervolume:
        sections.append(("search", "Search"))
    sections += [("table", "Table"), ("load", "Use it")]
    return [*sections, ("profile", "Profile"), ("settings", "Settings")]


def _trial_count(data: ReportData) -> str:
    total, failed = len(data.trials), len(data.failed)
    counted = "1 trial" if total == 1 else f"{total} trials"
    return f"{counted}, {failed} failed" if failed else counted


def _over_budget(data: ReportData) -> tuple[float, float] | None:
    """Return the chosen network's latency range when its upper end breaks the budget."""
    facts = data.chosen_facts
    if facts is None or data.budget_ms is None:
        return None
    low, high = (facts.latency_ms * (1 + sign * data.profile.error) for sign in (-1, 1))
    return (low, high) if high > data.budget_ms >= facts.latency_ms else None
