"""One self-contained HTML page about a run: no network, no other file, every string escaped.

The figures are drawn as SVG by the template from :mod:`autoprune.report.figures`. The page's own
style and script are named by their hashes in a Content-Security-Policy, so nothing else can run or
be fetched, whatever a model name or an error message holds.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup

from autoprune.files import write_atomically
from autoprune.report import figures, text
from autoprune.report.data import KernelTime, ReportData

#: Kernels shown before the rest is summed up.
TOP_KERNELS = 12
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSum:
    """Several kernels as one row.

    Attributes:
        count: How many there are.
        dense_ms: Their time in the dense network.
        chosen_ms: Their time in the chosen network.
    """

    count: int
    dense_ms: float
    chosen_ms: float


def write_report(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the page to ``path``; its folder must exist."""
    # Undecodable file names in a reason come as lone surrogates, which UTF-8 cannot hold.
    write_atomically(path, render(data).encode("utf-8", "backslashreplace"))


def render(data: ReportData) -> str:
    """Return the page; the same data give the same text."""
    style, script = _packaged("page.css"), _packaged("page.js")
    kernels = () if data.chosen is None else data.chosen.kernels
    slowest = sorted(kernels, key=lambda kernel: -kernel.dense_ms)
    top, others = slowest[:TOP_KERNELS], slowest[TOP_KERNELS:]
    hypervolume = figures.hypervolume_figure(data)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            chosen=data.chosen_facts,
            front=figures.front_figure(data),
            hypervolume=hypervolume,
            bars=figures.width_bars(data.chosen.widths if data.chosen else ()),
            rows=data.front.to_dict("records"),
            tested=bool(data.front["test_accuracy"].notna().any()),
            top=top,
            rest=_sum(others) if others else None,
            kernel_sum=_sum(kernels),
            most_ms=max((max(k.dense_ms, k.chosen_ms) for k in kernels), default=0.0) or 1.0,
            failures=_failures(data),
            settings=text.flat_settings(data.run.settings),
            sections=_sections(data),
            trial_count=_trial_count(data),
            over_budget=_over_budget(data),
            style=Markup(style),
            script=Markup(script),
            style_hash=_csp_hash(style),
            script_hash=_csp_hash(script),
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
        "significant": text.significant,
    }
    return environment


def _packaged(name: str) -> str:
    return resources.files("autoprune.report").joinpath(name).read_text(encoding="utf-8")


def _csp_hash(content: str) -> str:
    """Return ``content``'s hash as a Content-Security-Policy names it."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _sum(kernels: Sequence[KernelTime]) -> KernelSum:
    return KernelSum(
        count=len(kernels),
        dense_ms=math.fsum(kernel.dense_ms for kernel in kernels),
        chosen_ms=math.fsum(kernel.chosen_ms for kernel in kernels),
    )


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
