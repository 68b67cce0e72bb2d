"""The last screen of a search: what was found, how sure that is, and what to do next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import MeasureError
from autoprune.report import text
from autoprune.run.directory import shown
from autoprune.tasks.base import TrainingTask

if TYPE_CHECKING:
    from autoprune.run import Run, SearchResult

#: Standard deviations on each side of 95 % of a normal distribution.
_DEVIATIONS = 1.96


def show_outcome(result: SearchResult, run: Run, console: Console | None = None) -> None:
    """Print the last screen.

    Args:
        result: What was found.
        run: The search.
        console: Where to; ``None`` is stdout.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    if result.best is None:
        console.print(f"[bold red]no network was found:[/] {escape(result.unmet)}")
    else:
        console.print(_gained(result))
    networks = f"{len(result.points)} network{'s' if len(result.points) != 1 else ''}"
    console.print(f"\n{networks} on the front; {escape(result.stopped)}")
    _print_failures(result, console)
    if result.best is not None:
        console.print("\n[bold]how sure[/]")
        doubted = Table.grid(padding=(0, 2, 0, 0))
        for what, told in doubts(result):
            doubted.add_row(f"  {what}", escape(told))
        console.print(doubted, soft_wrap=False)
    console.print("\n[bold]what next[/]")
    steps = next_steps(result, run)
    width = max(len(what) for what, _ in steps)
    for what, command in steps:
        # Never wrapped: each is there to be copied.
        console.print(f"  {what:<{width}}  {escape(command)}")


def doubts(result: SearchResult) -> list[tuple[str, str]]:
    """Return how far the numbers of the best network may be off, each with what is known of it."""
    device, best = result.device, result.best
    assert best is not None, "there is nothing to doubt"
    off = device.error * best.latency_ms
    ends = [text.milliseconds(best.latency_ms + sign * off) for sign in (-1, 1)]
    about = [
        (
            "latency",
            f"{ends[0]} to {ends[1]}, predicted: mean error on networks that were held out",
        ),
        *(("", note) for note in device.notes),
    ]
    if best.samples:
        low, high = map(text.percent, interval(best.accuracy, best.samples))
        about.append(
            (
                "accuracy",
                f"{low} to {high} (95 %), from {best.samples:,} samples of the search split; the "
                "best of many by it, so it flatters",
            )
        )
    if best.test_accuracy is not None:
        about.append(("", "that of the test split is of samples the search never saw"))
    return about


def interval(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was counted, by Wilson's formula.

    >>> [round(end, 3) for end in interval(0.9, 100)]
    [0.826, 0.945]

    References:
        [Wilson1927] Wilson. Probable Inference, the Law of Succession, and Statistical Inference.
        Journal of the American Statistical Association 22, 1927.
    """
    z2 = _DEVIATIONS**2
    middle = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = (
        _DEVIATIONS
        * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
        / (1 + z2 / samples)
    )
    return max(0.0, middle - half), min(1.0, middle + half)


def next_steps(result: SearchResult, run: Run) -> list[tuple[str, str]]:
    """Return what can be done with the run, each with what to type or to open."""
    directory = run.directory
    folder, settings = shown(directory.path), directory.record.settings
    steps = [("look at", f"{folder}/report.html")]
    if result.best is not None:
        if isinstance(run.prepared.task, TrainingTask):
            steps.append(("train it again", f"autoprune finetune {folder}"))
        steps += [
            ("deploy it", f"autoprune export {folder} --format onnx"),
            ("measure it", _measuring(run)),
            ("load it in Python", run.load_call),
        ]
    return [*steps, ("search on", f"{directory.resume_command} --trials {2 * settings.trials}")]


def _measuring(run: Run) -> str:
    """Return how the front is measured: here, or with a kit where the device is another machine."""
    from autoprune.run.verify import setup_here

    folder = shown(run.directory.path)
    try:
        setup_here(run.directory.record.profile)
    except MeasureError:
        return f"autoprune verify {folder} --kit kit"
    return f"autoprune verify {folder}"


def _gained(result: SearchResult) -> Table:
    """Return the best network beside the unpruned one."""
    assert result.best is not None, "there is nothing to compare"
    dense, best = result.dense, result.best
    table = Table(title=None, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    for name in ("unpruned", f"best (trial {best.trial})", "change"):
        table.add_column(name, justify="right")
    error = f"±{text.percent(result.device.error, 0)}"
    table.add_row(
        f"latency on {escape(result.device.name)}, {error}",
        text.milliseconds(dense.latency_ms),
        text.milliseconds(best.latency_ms),
        text.change(best.latency_ms, dense.latency_ms),
    )
    for label, old, new in (
        ("accuracy, search split", dense.accuracy, best.accuracy),
        ("accuracy, test split", dense.test_accuracy, best.test_accuracy),
    ):
        gained = "" if old is None or new is None else text.points(new, old)
        table.add_row(label, text.percent(old), text.percent(new), gained)
    for label, was, now in (
        ("MACs", dense.macs, best.macs),
        ("parameters", dense.params, best.params),
    ):
        table.add_row(label, text.count(was), text.count(now), text.change(now, was))
    for name, before in dense.extra.items():
        after, label = best.extra[name], escape(text.cost_title(name))
        change = text.change(after, before)
        table.add_row(label, text.cost(before, name), text.cost(after, name), change)
    return table


def _print_failures(result: SearchResult, console: Console) -> None:
    if result.failures:
        reason = next(iter(result.failures))
        console.print(
            f"[yellow]{sum(result.failures.values())} of {result.trials} trials failed,[/] most "
            f"often: {escape(reason)}"
        )
