"""How a search shows that it goes on: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from autoprune.report import text

if TYPE_CHECKING:
    from autoprune.execution.driver import Listener
    from autoprune.execution.driver import Progress as Standing
    from autoprune.run import Run

#: Shortest time between two plain lines; a better network is told at once.
LINE_SECONDS = 5.0


@contextlib.contextmanager
def progress(console: Console, run: Run) -> Iterator[Listener]:
    """Show the search while the body runs; what is yielded listens to it."""
    settings = run.directory.record.settings
    if console.is_terminal and not console.quiet:
        with _live(console, settings.trials, settings.time_limit) as listener:
            yield listener
    else:
        yield PlainLines(console, time_limit=settings.time_limit)


class PlainLines:
    """Prints a line when a better network is found, and otherwise now and then."""

    def __init__(
        self,
        console: Console,
        *,
        time_limit: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store parameters.

        Args:
            console: Where lines go.
            time_limit: Seconds the search may take.
            clock: Returns seconds; for tests.
        """
        self.console = console
        self.time_limit = time_limit
        self.clock = clock
        self._best: int | None = None
        self._last = float("-inf")

    def __call__(self, standing: Standing) -> None:
        """Print where the search stands, if it is time to."""
        now = self.clock()
        best = None if standing.best is None else standing.best.number
        last = standing.done >= standing.total
        if best != self._best or last or now - self._last >= LINE_SECONDS:
            self._best, self._last = best, now
            line = f"{standing.done}/{standing.total} trials, {described(standing)}"
            self.console.print(f"{line}, {remaining(standing, self.time_limit)}")


def described(standing: Standing) -> str:
    """Return best network, hypervolume and rate in a few words."""
    record = standing.best
    best = "nothing under the budget yet"
    if record is not None:
        scores = record.evaluation
        best = f"best {text.percent(scores.accuracy)} at {text.milliseconds(scores.latency_ms)}"
    rate = standing.fresh / standing.seconds if standing.seconds > 0 else 0.0
    volume = text.significant(standing.record.hypervolume)
    rung = f", rung {standing.record.rung}" if standing.record.rung else ""
    return f"{best}, hypervolume {volume}, {text.significant(rate, 2)} trials/s{rung}"


def remaining(standing: Standing, time_limit: float | None) -> str:
    """Return how long the search will go on at its present rate."""
    left = (standing.total - standing.done) * standing.seconds / standing.fresh
    if time_limit is not None:
        left = min(left, max(0.0, time_limit - standing.seconds))
    minutes, seconds = divmod(round(left), 60)
    return f"{minutes}:{seconds:02d} left"


@contextlib.contextmanager
def _live(console: Console, trials: int, time_limit: float | None) -> Iterator[Listener]:
    columns = (
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("starting workers", total=trials, left="")

        def listener(standing: Standing) -> None:
            display.update(
                task,
                completed=standing.done,
                description=described(standing),
                left=remaining(standing, time_limit),
            )

        yield listener
