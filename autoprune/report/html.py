"""One self-contained HTML page about a run: no network, no other file, every string escaped.

The charts are SVG and what they show stands in tables, so all but choosing another network works
without JavaScript. Style and script are named by their hashes in a Content-Security-Policy, so
nothing else can run or be fetched, whatever a model name or an error message holds.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import re
from importlib import resources

import jinja2
from markupsafe import Markup

from autoprune.files import write_atomically
from autoprune.report import figures, text
from autoprune.report.data import ReportData
from autoprune.report.views import network_views
from autoprune.strategy.goals import column

#: Trial numbers listed per reason of failure.
_LISTED = 12
#: Rows that are shown before the rest is folded away.
_SHOWN_GROUPS, _SHOWN_KERNELS = 24, 12


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
class Parameter:
    """A group or block of the search space, with what is known of its worth.

    Attributes:
        name: Name of the group or block.
        block: Whether it is a block.
        curve: Path of the damage curve, empty where there is none.
        quarter: Damage of removing a quarter, missing where the space does not reach so far.
        half: Damage of removing half.
        importance: Share of the variance of the loss that it explains.
    """

    name: str
    block: bool
    curve: str = ""
    quarter: float = math.nan
    half: float = math.nan
    importance: float = 0.0


def write_report(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the page to ``path``; its folder must exist."""
    # Undecodable file names in a reason come as lone surrogates, which UTF-8 cannot hold.
    write_atomically(path, render(data).encode("utf-8", "backslashreplace"))


def render(data: ReportData) -> str:
    """Return the page; the same data give the same text."""
    fronts = {name: figures.front(data, name) for name in map(column, data.costs)}
    lowest = next(iter(fronts.values())).y.low
    views = network_views(data)
    view = next((view for view in views if data.chosen and view.trial == data.chosen.trial), None)
    kernels = () if data.chosen is None else data.chosen.kernels
    parameters = _parameters(data)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            chosen=data.chosen_facts,
            fronts=fronts,
            progress=figures.hypervolume(data),
            extra=[name for name in data.extra if name in data.dense.extra],
            below=int((data.complete["accuracy"] < lowest).sum()),
            rows=figures.selectable(data),
            aside=data.chosen is not None and data.chosen.trial not in set(data.front["number"]),
            tested=bool(data.front["test_accuracy"].notna().any()),
            view=view,
            views=[dataclasses.asdict(view) for view in views],
            kernels=sorted(enumerate(kernels), key=lambda entry: -entry[1].dense_ms),
            slowest=max((max(k.dense_ms, k.chosen_ms) for k in kernels), default=0.0) or 1.0,
            shown_groups=_SHOWN_GROUPS,
            shown_kernels=_SHOWN_KERNELS,
            parameters=parameters,
            most_important=max((each.importance for each in parameters), default=0.0),
            raised=_raised(data),
            failures=_failures(data),
            settings=text.flat_settings(data.run.settings),
            sections=_sections(data, bool(parameters)),
            trial_count=_trial_count(data),
            over_budget=_over_budget(data),
            **embedded(),
        )
    )


def embedded() -> dict[str, Markup]:
    """Return style and script of the page and their hashes, as the template names them."""
    style, script = packaged("chart.css") + packaged("page.css"), packaged("page.js")
    return {
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": Markup(_csp_hash(style)),
        "script_hash": Markup(_csp_hash(script)),
    }


def environment() -> jinja2.Environment:
    """Return what templates of this package are drawn with; every value is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("autoprune.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "milliseconds": text.milliseconds,
        "percent": text.percent,
        "points": text.points,
        "change": text.change,
        "count": text.count,
        "cost": text.cost,
        "cost_title": text.cost_title,
        "significant": text.significant,
        "place": _place,
        "breakable": _breakable,
        "json": _json,
    }
    return made


def packaged(name: str) -> str:
    """Return the text of a file of this package."""
    return resources.files("autoprune.report").joinpath(name).read_text(encoding="utf-8")


def _place(percent: int | float) -> str:
    """Return a position as short as it can be read."""
    return f"{percent:.2f}".rstrip("0").rstrip(".")


def _breakable(name: str) -> Markup:
    """Return a dotted name that may be broken behind its dots."""
    return Markup("<wbr>").join(re.split(r"(?<=[.])", name))


def _json(value: object) -> Markup:
    """Return plain values as JSON in which no character can end the script element around it."""
    content = json.dumps(value, separators=(",", ":"))
    return Markup(content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


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


def _parameters(data: ReportData) -> list[Parameter]:
    """Return groups in network order and then blocks, with damage and importance."""
    shares = {} if data.importance is None else dict(data.importance.shares)
    paths = figures.damage_paths(data.damage)
    found = [
        Parameter(
            name=curve.name,
            block=False,
            curve=paths[curve.name],
            quarter=figures.damage_at(curve, 0.25),
            half=figures.damage_at(curve, 0.5),
            importance=shares.pop(f"ratio/{curve.name}", 0.0),
        )
        for curve in data.damage
    ]
    for name, share in shares.items():
        kind, _, rest = name.partition("/")
        found.append(Parameter(name=rest, block=kind == "drop", importance=share))
    return found


def _sections(data: ReportData, parameters: bool) -> list[tuple[str, str]]:
    """Return (anchor, title) of the sections the page has."""
    present = {
        ("front", "Front"): True,
        ("network", "Network"): data.chosen is not None,
        ("table", "Table"): True,
        ("load", "Use it"): True,
        ("search", "Search"): bool(data.hypervolume),
        ("groups", "What matters"): parameters,
        ("profile", "Profile"): True,
        ("settings", "Settings"): True,
    }
    return [section for section, there in present.items() if there]


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
