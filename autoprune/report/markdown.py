"""A run as a page of Markdown: the result, the front, failures, profile and settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from autoprune.files import write_atomically
from autoprune.report import text
from autoprune.report.data import ReportData
from autoprune.report.figures import selectable
from autoprune.report.views import network_views


def write_markdown(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the page to ``path``; its folder must exist."""
    write_atomically(path, markdown(data).encode("utf-8", "backslashreplace"))


def markdown(data: ReportData) -> str:
    """Return the page."""
    parts = [
        f"# {_cell(data.model_name)} on {_cell(data.profile.device)}",
        _subject(data),
        "## Result",
        *_result(data),
        "## The front",
        _table((*_HEADER, *([_FINETUNED] if data.finetuned else [])), _front(data)),
        *_search(data),
        "## Device profile",
        f"`{data.profile.name}`: ± {text.percent(data.profile.error, 0)}, "
        f"{_cell(data.profile.error_text)}.",
        "\n".join(f"- {_cell(line)}" for line in (*data.profile.provenance, *data.profile.notes)),
        "## Settings",
        _table(("setting", "value"), [("seed", str(data.run.seed)), *_settings(data)]),
        "Made with " + ", ".join(f"{n} {v}" for n, v in data.run.versions.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_HEADER = (
    *("trial", "accuracy", "test accuracy", "loss", "latency", "speed-up", "MACs", "parameters"),
)
#: One more where networks of the run were fine-tuned.
_FINETUNED = "fine-tuned"


def _subject(data: ReportData) -> str:
    profile = data.profile
    budget = "" if data.budget_ms is None else f", budget {text.milliseconds(data.budget_ms)}"
    return (
        f"{_cell(profile.runtime)}, {profile.precision}, batch {profile.batch}{budget}; "
        f"{len(data.trials)} trials, {len(data.failed)} failed."
    )


def _result(data: ReportData) -> list[str]:
    if data.chosen is None:
        return ["No trial has given a network yet."]
    view = next(view for view in network_views(data) if view.trial == data.chosen.trial)
    rows = [(card.name, card.value, "; ".join(card.notes)) for card in view.cards]
    commands = [f"{command.title}:\n\n```\n{command.text}\n```" for command in data.run.commands]
    return [
        f"Trial {view.trial} is recommended. {_cell(view.removed)}".rstrip(),
        _table(("", "value", ""), rows),
        *commands,
    ]


def _front(data: ReportData) -> list[tuple[str, ...]]:
    rows = [(str(row["number"]), row) for row in selectable(data)]
    rows.append(("unpruned", data.dense.flat()))
    return [
        (
            name,
            text.percent(row["accuracy"], 2),
            text.percent(row["test_accuracy"], 2),
            text.significant(row["loss"]),
            text.milliseconds(row["latency_ms"]),
            f"{data.dense.latency_ms / row['latency_ms']:.2f}{text.TIMES}",
            text.count(row["macs"]),
            text.count(row["params"]),
            *_finetuned(data, name),
        )
        for name, row in rows
    ]


def _finetuned(data: ReportData, name: str) -> tuple[str, ...]:
    """Return the accuracy after fine-tuning, nothing in a run without any."""
    if not data.finetuned:
        return ()
    facts = data.finetuned.get(int(name)) if name.isdigit() else None
    if facts is None:
        return (text.MISSING,)
    tested = facts.test_accuracy
    known = "" if tested is None else f", test {text.percent(tested, 2)}"
    return (f"{text.percent(facts.accuracy, 2)}{known}",)


def _search(data: ReportData) -> list[str]:
    if not data.hypervolume:
        return []
    parts = ["## The search", f"Hypervolume {text.percent(data.hypervolume[-1], 2)}."]
    if data.uniform is not None:
        reached, count = data.uniform.hypervolume[-1], len(data.uniform.networks)
        parts.append(f"Uniform pruning: {text.percent(reached, 2)} with {count} networks.")
    reasons = data.failed["reason"].value_counts()
    if len(reasons):
        counted = [(str(reason), str(number)) for reason, number in reasons.items()]
        parts.append(_table(("reason of failure", "trials"), counted))
    return parts


def _settings(data: ReportData) -> list[tuple[str, str]]:
    return text.flat_settings(data.run.settings)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(words: str) -> str:
    """Return text that stays in its cell and shows no markup of its own."""
    flat = " ".join(words.split("\n"))
    for mark in ("\\", "|", "<", "`", "*", "_", "["):
        flat = flat.replace(mark, f"\\{mark}")
    return flat
