"""How a search shows that it goes on: a live screen, plain lines, lines of JSON, or not at all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from autoprune.cli.events import JsonLines
from autoprune.cli.live import LiveScreen
from autoprune.cli.pace import Pace, clock_text
from autoprune.cli.view import Mode, View
from autoprune.report import text

if TYPE_CHECKING:
    from autoprune.execution.driver import Listener
    from autoprune.execution.driver import Progress as Standing
    from autoprune.run import Run, SearchResult

#: Shortest time between two plain lines; a better network is told at once.
LINE_SECONDS = 5.0

#: How often the live screen is drawn, per second.
DRAWN_PER_SECOND = 2.0


def make_view(mode: Mode | None, ending: Callable[[SearchResult, Run], None]) -> View:
    """Return what shows a search.

    Args:
        mode: How; ``None`` is live in a terminal, plain elsewhere.
        ending: Prints what was found, unless that is a line of JSON.
    """
    if mode is Mode.jsonl:
        return JsonLines()
    console = Console(stderr=True, quiet=mode is Mode.quiet, highlight=False, soft_wrap=True)
    able = console.is_terminal and not console.is_dumb_terminal
    return TextView(console, live=able and mode in (None, Mode.live), ending=ending)


class TextView:
    """Shows a search to people."""

    def __init__(
        self, console: Console, *, live: bool, ending: Callable[[SearchResult, Run], None]
    ) -> None:
        """Store parameters.

        Args:
            console: Where everything but the ending goes.
            live: With a screen that is drawn again and again, or line by line.
            ending: Prints what was found.
        """
        self.console, self.live, self.ending = console, live, ending

    def note(self, sentence: str) -> None:
        """Print an oddity that stops nothing."""
        self.console.print(f"[yellow]note:[/] {escape(sentence)}")

    def preparing(self) -> contextlib.AbstractContextManager[object]:
        """Show that the network is traced while the body runs."""
        return self.console.status("tracing and checking the network")

    @contextlib.contextmanager
    def searching(self, run: Run) -> Iterator[Listener]:
        """Show the search while the body runs; what is yielded listens to it."""
        self.console.print(f"run directory: {escape(str(run.directory.path))}")
        if not self.live:
            settings = run.directory.record.settings
            yield PlainLines(self.console, time_limit=settings.time_limit)
            return
        screen = LiveScreen(run)
        with Live(
            screen, console=self.console, refresh_per_second=DRAWN_PER_SECOND, transient=True
        ):
            yield screen

    def finished(self, result: SearchResult, run: Run) -> None:
        """Print what was found."""
        self.ending(result, run)

    def stopped(self, run: Run | None) -> None:
        """Say how a stopped search goes on."""
        if run is None:
            self.console.print("stopped before the search began; nothing was written")
            return
        self.console.print(
            "stopped; every finished trial is kept. Continue with\n  "
            + escape(run.directory.resume_command)
        )


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
        self._pace = Pace(clock=clock)
        self._best: int | None = None
        self._last = float("-inf")

    def __call__(self, standing: Standing) -> None:
        """Print where the search stands, if it is time to."""
        self._pace.note(running=standing.running)
        now = self.clock()
        best = None if standing.best is None else standing.best.number
        last = standing.done >= standing.total
        if best != self._best or last or now - self._last >= LINE_SECONDS:
            self._best, self._last = best, now
            self.console.print(", ".join([described(standing), *self._paced(standing)]))

    def _paced(self, standing: Standing) -> list[str]:
        """Return rate and time left, as soon as they are known."""
        most = None if self.time_limit is None else max(0.0, self.time_limit - standing.seconds)
        left = self._pace.seconds_left(standing.total - standing.done, most=most)
        rate = self._pace.per_second
        if rate is None or left is None:
            return []
        return [f"{text.significant(rate, 2)} trials/s", f"{clock_text(left)} left"]


def described(standing: Standing) -> str:
    """Return how far the search is, its best network and hypervolume in a few words."""
    record = standing.best
    best = "no network meets the limits yet"
    if record is not None:
        scores = record.evaluation
        best = f"best {text.percent(scores.accuracy)} at {text.milliseconds(scores.latency_ms)}"
    volume = text.significant(standing.record.hypervolume)
    rung = f", rung {standing.record.rung}" if standing.record.rung else ""
    return f"{standing.done}/{standing.total} trials, {best}, hypervolume {volume}{rung}"
