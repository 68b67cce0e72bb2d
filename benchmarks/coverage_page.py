"""The page of `coverage.py`: `docs/coverage.md` from the rows that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"

Row = Mapping[str, Any]
Rows = Mapping[tuple[str, str], Row]

#: More of the MACs left than this, in fractions, counts as pruning less far.
_SLACK = 0.01

COLUMNS = (
    "model",
    "forward s",
    "trace s",
    "trace <= 3 x forward + 1 s",
    "trial cuts s",
    "groups",
    "blocks",
    "MACs prunable",
    "MACs left at 50 %",
    "runs at random (of 5)",
    "cut equals zeroed",
    "reload equal",
    "torch.export equal",
    "ONNX equal",
    "operators without a rule",
    "error",
    "torch-pruning: MACs left at 50 %",
    "torch-pruning s",
    "torch-pruning: error",
)


def write_page(
    rows: Rows, order: Sequence[tuple[str, str]], seconds: Mapping[str, int], limit_bytes: int
) -> None:
    """Write the page.

    Args:
        rows: By model and side, ``ours`` or ``theirs``.
        order: Name and family of every network of the benchmark.
        seconds: Time limit of each side.
        limit_bytes: Memory limit.
    """
    there = [(name, family) for name, family in order if (name, "ours") in rows]
    lines = ["# Coverage", "", *_provenance(rows, seconds, limit_bytes), ""]
    lines += [*_summary(rows, [name for name, _ in there], len(order)), ""]
    for family in dict.fromkeys(family for _, family in there):
        lines += [f"## {family}", "", *_table(rows, [n for n, f in there if f == family]), ""]
    PAGE.write_text("\n".join(lines))


def _provenance(rows: Rows, seconds: Mapping[str, int], limit_bytes: int) -> list[str]:
    dates = sorted({str(row["date"]) for row in rows.values()})
    places = sorted({str(row["where"]) for row in rows.values()})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "never"
    return [
        f"`python benchmarks/coverage.py`, {span}; {'; '.join(places)}. Each network runs in a",
        f"process of its own with one thread, at most {seconds['ours']} s (torch-pruning "
        f"{seconds['theirs']} s) and {limit_bytes // 2**30} GiB of",
        "address space. Rows come from `benchmarks/results/coverage.jsonl`.",
        "",
        "Every group counted was cut for real: cutting equals zeroing to 1e-5 where no",
        "normalisation mixes the channels. MACs prunable: what goes when every group is cut to one",
        "unit. MACs of both tools are counted by autoprune. torch-pruning 1.6.1 gets half of every",
        "channel with its magnitude pruner, is told the output layers and the numbers of heads,",
        "and must run afterwards with outputs of the same shapes.",
    ]


def _summary(rows: Rows, names: Sequence[str], total: int) -> list[str]:
    ours = {name: rows[name, "ours"] for name in names}
    raised = [name for name in names if "trace_s" not in ours[name] or "verify_s" not in ours[name]]
    useful = [
        name
        for name in names
        if isinstance(ours[name].get("half"), float) and ours[name].get("prunable", 0) > 0.5
    ]
    both = [name for name in names if (name, "theirs") in rows]
    as_far = [name for name in both if _as_far(ours[name], rows[name, "theirs"])]
    theirs = [name for name in both if "left" in rows[name, "theirs"]]
    late = sum("more than" in rows[name, "theirs"].get("error", "") for name in both)
    lines = [
        f"- {len(names)} of {total} networks measured; tracing or trial cuts of {len(raised)} "
        f"raise or do not end within the limits{_listed(raised)}.",
        f"- {len(useful)} run at 50 % of every group with more than half of the MACs prunable.",
        f"- torch-pruning runs at 50 % on {len(theirs)} of {len(both)}; {late} end at the limit of "
        f"time, and the machine had other work as well. On {len(as_far)} of "
        f"{len(both)} autoprune prunes at least as far (to one point of the MACs left)"
        f"{_listed([name for name in both if name not in as_far])}.",
    ]
    for key, what in (("reload", "reload bit for bit"), ("masked", "equal the zeroed network")):
        bad = [name for name in names if ours[name].get(key) not in ("yes", "all mixed")]
        lines.append(f"- {len(names) - len(bad)} {what}{_listed(bad)}.")
    slow = [name for name in names if ours[name].get("cnn") and _in_time(ours[name]) == "no"]
    cnns = [name for name in names if ours[name].get("cnn")]
    lines.append(
        f"- {len(cnns) - len(slow)} of {len(cnns)} convolutional networks trace within 3 forward "
        f"passes and 1 s{_listed(slow)}."
    )
    return lines


def _listed(names: Sequence[str]) -> str:
    return f" (not: {', '.join(names)})" if 0 < len(names) <= 12 else ""


def _as_far(ours: Row, theirs: Row) -> bool:
    """Return whether autoprune leaves no more of the MACs, or the other does not run."""
    if "left" not in theirs:
        return True
    return isinstance(ours.get("half"), float) and ours["half"] <= theirs["left"] + _SLACK


def _table(rows: Rows, names: Sequence[str]) -> list[str]:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name in names:
        cells = _cells(name, rows[name, "ours"], rows.get((name, "theirs"), {}))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _cells(name: str, ours: Row, theirs: Row) -> list[str]:
    return [
        name,
        _number(ours.get("forward_s")),
        _number(ours.get("trace_s")),
        _in_time(ours),
        _number(ours.get("verify_s")),
        _of(ours.get("groups")),
        _of(ours.get("blocks")),
        _share(ours.get("prunable")),
        _share(ours.get("half")),
        _text(ours.get("random")),
        _text(ours.get("masked")),
        _text(ours.get("reload")),
        _text(ours.get("program")),
        _text(ours.get("onnx")),
        ", ".join(ours.get("unsupported", ())),
        _text(ours.get("error")),
        _share(theirs.get("left")),
        _number(theirs.get("step_s")),
        _text(theirs.get("error")),
    ]


def _in_time(row: Row) -> str:
    if not row.get("cnn") or "trace_s" not in row:
        return ""
    return "yes" if row["trace_s"] <= 3 * row["forward_s"] + 1 else "no"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else ""


def _share(value: object) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, float) else _text(value)


def _of(value: object) -> str:
    return f"{value[0]} of {value[1]}" if isinstance(value, list) else ""


def _text(value: object) -> str:
    return "" if value is None else str(value).replace("\n", " ")[:160]
