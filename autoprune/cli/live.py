"""The live screen of a search: the front as it grows, and what goes on."""

from __future__ import annotations

import array
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autoprune.cli.chart import Axis, Chart, Points, sparkline, staircase
from autoprune.cli.pace import Pace, clock_text
from autoprune.report import text
from autoprune.strategy.goals import column
from autoprune.strategy.pareto import pareto_mask

if TYPE_CHECKING:
    from autoprune.execution.driver import Progress as Standing
    from autoprune.execution.driver import Record
    from autoprune.run import Run

#: Rows that the screen needs beside the plot's own, and fewest and most of those.
_AROUND, _ROWS = 13, (5, 14)
#: Columns below which there is no plot, and columns of the labels at its left.
_NARROW, _LABELS = 48, 9
#: Smallest difference of accuracies that the plot shows over its height.
_FLAT = 0.004
_SPARK = 24


class LiveScreen:
    """What rich shows while a search runs; also the search's listener.

    A call takes note of one evaluation and draws nothing, so it costs no evaluation anything: the
    screen is drawn from what was noted a few times a second.
    """

    def __init__(self, run: Run, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Store parameters.

        Args:
            run: The search.
            clock: Returns seconds; for tests.
        """
        settings = run.directory.record.settings
        goals = run.prepared.problem.goals
        self.total, self.time_limit = settings.trials, settings.time_limit
        self.sampler, self.budget_ms = settings.sampler, goals.budget_ms
        self.cost, self.column = goals.costs[0], column(goals.costs[0])
        profile = run.directory.record.profile
        limit = "" if self.budget_ms is None else f", at most {self.budget_ms:g} ms"
        self.title = f"{run.directory.record.model.name} on {profile.name}{limit}"
        self.error = profile.provenance.held_out.mape
        self.pace = Pace(clock=clock)
        self._standing: Standing | None = None
        self._read = 0
        self._points = array.array("d")  # cost and accuracy by turns
        self._dense: Record | None = None
        self._volumes: list[float] = []
        self._failed = self._screened = self._rung = 0

    def __call__(self, standing: Standing) -> None:
        """Take note of an evaluation that has ended."""
        self.pace.note(running=standing.running)
        self._standing = standing
        for record in standing.records[self._read :]:
            self._take(record)
        self._read = len(standing.records)

    def _take(self, record: Record) -> None:
        scores = record.evaluation
        self._volumes.append(record.hypervolume)
        self._failed += scores.status == "failed"
        self._screened += scores.status == "screened"
        if record.dense:
            self._dense = record
        elif record.complete and record.duplicate_of is None:
            if record.rung > self._rung:  # scores are comparable within a rung only
                self._rung, self._points = record.rung, array.array("d")
            if record.rung == self._rung:
                self._points.extend((scores.cost(self.cost), scores.accuracy))

    def _latest(self, record: Record, best: Record | None) -> str:
        """Return what became of the latest trial."""
        scores = record.evaluation
        if scores.status == "failed":
            return f"trial {record.number} failed: {scores.reason}"
        where = text.cost(scores.cost(self.cost), self.column)
        told = f"trial {record.number}: {text.percent(scores.accuracy)} at {where}"
        if scores.status == "screened":
            return f"{told}, ended after {scores.samples} samples, clearly worse"
        return f"{told}, the best so far" if record is best else told

    # --- what is drawn --------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the screen as large as the terminal has room for."""
        rows = min(console.height - _AROUND, _ROWS[1])
        parts: list[RenderableType] = []
        if rows >= _ROWS[0] and options.max_width >= _NARROW and self._points:
            parts += [*self._plot(options.max_width - 4 - _LABELS, rows), Text()]
        parts.append(self._facts())
        yield Panel(Group(*parts), title=escape(self.title), title_align="left", border_style="dim")

    def _plot(self, columns: int, rows: int) -> list[Text]:
        # By way of bytes: an array that numpy looks at could not grow meanwhile.
        points = np.frombuffer(self._points.tobytes()).reshape(-1, 2)
        front = points[pareto_mask(points[:, 1], points[:, 0])]
        front = front[np.argsort(front[:, 0])]
        x, y = self._axes(front, columns, rows)
        chart = Chart(x, y)
        chart.draw(points, "·", "dim")
        chart.draw(staircase(front, x), "─", "cyan")
        if self.budget_ms is not None and self.cost == "latency":
            chart.upright(self.budget_ms, "┊", "yellow")
        chart.draw(front, "●", "cyan")
        below = front[front[:, 1] < y.low]
        chart.draw(np.stack([below[:, 0], np.full(len(below), y.middles[0])], 1), "▾", "cyan")
        for record, mark, style in (
            (self._dense, "◆", "magenta"),
            (None if self._standing is None else self._standing.best, "★", "bold green"),
        ):
            if record is not None:
                scores = record.evaluation
                chart.draw(np.array([[scores.cost(self.cost), scores.accuracy]]), mark, style)
        labelled = (0, rows // 2, rows - 1)
        heights = [text.percent(height) for height in y.middles[::-1].tolist()]
        lines = [
            Text.assemble(
                (f"{heights[row] if row in labelled else '':>{_LABELS - 2}} ┤", "dim"), line
            )
            for row, line in enumerate(chart.lines())
        ]
        return [*lines, *self._legend(x, columns)]

    def _axes(self, front: Points, columns: int, rows: int) -> tuple[Axis, Axis]:
        """Return axes that show the better half of the front well."""
        known = [point for point in (self._dense,) if point is not None]
        right = [record.evaluation.cost(self.cost) for record in known] + [front[-1, 0]]
        if self.budget_ms is not None and self.cost == "latency":
            right.append(self.budget_ms)
        left, end = float(front[0, 0]), max(right)
        margin = 0.02 * (end - left) or 0.02 * end or 1.0
        top = max([record.evaluation.accuracy for record in known] + [float(front[-1, 1])])
        low = max(float(front[0, 1]), top - 3 * (top - float(np.median(front[:, 1]))))
        low = min(low, top - _FLAT)
        half = (top - low) / (rows - 1) / 2  # so that both are in the middle of their rows
        return Axis(left - margin, end + margin, columns), Axis(low - half, top + half, rows)

    def _legend(self, x: Axis, columns: int) -> list[Text]:
        """Return the ends of the lower axis, and what the marks mean."""
        left, right = text.cost(x.low, self.column), text.cost(x.high, self.column)
        gap = " " * max(1, columns - len(left) - len(right))
        parts = [("· evaluated  ", "dim"), ("● front  ", "cyan"), ("★ best  ", "bold green")]
        parts += [("◆ unpruned", "magenta")] if self._dense is not None else []
        if self.budget_ms is not None and self.cost == "latency":
            parts.append(("  ┊ budget", "yellow"))
        return [
            Text(" " * _LABELS + left + gap + right, style="dim", no_wrap=True, overflow="crop"),
            Text.assemble(" " * _LABELS, *parts, no_wrap=True, overflow="ellipsis"),
        ]

    def _facts(self) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        standing = self._standing
        if standing is None:
            table.add_row("searched", f"0/{self.total}")
            table.add_row("now", "scoring the unpruned network, then starting workers")
            return table
        table.add_row("searched", self._progress(standing))
        table.add_row("best", self._best(standing))
        volume = text.significant(standing.record.hypervolume)
        table.add_row("hypervolume", f"{volume}  {sparkline(self._volumes, _SPARK)}")
        table.add_row("pace", self._paced(standing))
        table.add_row("latest", Text(self._latest(standing.record, standing.best)))
        table.add_row("sampler", Text(self._doing(standing)))
        return table

    def _progress(self, standing: Standing) -> RenderableType:
        grid = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=standing.total, completed=standing.done, width=20)
        grid.add_row(f"{standing.done}/{standing.total}", bar, self._left(standing))
        return grid

    def _left(self, standing: Standing) -> str:
        if standing.done >= standing.total and standing.running:
            return "the last of them" if not standing.record.rung else "training the most promising"
        if standing.done >= standing.total:
            return "scoring the front on test samples, writing files"
        most = None if self.time_limit is None else max(0.0, self.time_limit - standing.seconds)
        seconds = self.pace.seconds_left(standing.total - standing.done, most=most)
        return "measuring the pace" if seconds is None else f"{clock_text(seconds)} left"

    def _best(self, standing: Standing) -> str:
        record = standing.best
        if record is None:
            return "no network meets the limits yet"
        scores = record.evaluation
        told = (
            f"{text.percent(scores.accuracy)} at {text.milliseconds(scores.latency_ms)} "
            f"±{text.percent(self.error, 0)} (trial {record.number})"
        )
        if self._dense is None:
            return told
        dense = self._dense.evaluation
        return f"{told}; unpruned {text.percent(dense.accuracy)} at " + text.milliseconds(
            dense.latency_ms
        )

    def _paced(self, standing: Standing) -> str:
        rate = self.pace.per_second
        parts = [] if rate is None else [f"{text.significant(rate, 2)} evaluations/s"]
        parts += [f"{standing.running} running"] if standing.running else []
        parts += [f"{self._screened} ended early"] if self._screened else []
        parts += [f"[yellow]{self._failed} failed[/]"] if self._failed else []
        return ", ".join(parts) or "starting"

    def _doing(self, standing: Standing) -> str:
        return f"{self.sampler}, {standing.doing}" if standing.doing else self.sampler
