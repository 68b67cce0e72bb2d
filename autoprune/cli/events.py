"""What happens in a search as lines of JSON, for programs; docs/formats.md has the fields."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from autoprune.cli.pace import Pace

if TYPE_CHECKING:
    from autoprune.execution.driver import Listener
    from autoprune.execution.driver import Progress as Standing
    from autoprune.run import Run, SearchResult


class JsonLines:
    """Writes one line of JSON per event to stdout."""

    def __init__(
        self,
        write: Callable[[str], None] = typer.echo,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store parameters.

        Args:
            write: Takes a line.
            clock: Returns seconds; for tests.
        """
        self._write = write
        self._pace = Pace(clock=clock)
        self._time_limit: float | None = None

    def note(self, sentence: str) -> None:
        """Tell an oddity."""
        self._event("note", text=sentence)

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Say nothing while the network is traced."""
        yield

    @contextlib.contextmanager
    def searching(self, run: Run) -> Iterator[Listener]:
        """Tell that the search begins; what is yielded tells every evaluation."""
        settings = run.directory.record.settings
        self._time_limit = settings.time_limit
        self._event(
            "start",
            run=str(run.directory.path),
            model=run.directory.record.model.name,
            device=run.directory.record.profile.name,
            budget_ms=settings.budget_ms,
            trials=settings.trials,
        )
        yield self._evaluation

    def finished(self, result: SearchResult, run: Run) -> None:
        """Tell what was found."""
        self._event("end", **result.to_json())

    def stopped(self, run: Run | None) -> None:
        """Tell how the search is continued, ``None`` where nothing was written."""
        self._event("stopped", resume=None if run is None else run.directory.resume_command)

    def _evaluation(self, standing: Standing) -> None:
        self._pace.note(running=standing.running)
        record, scores = standing.record, standing.record.evaluation
        most = None if self._time_limit is None else self._time_limit - standing.seconds
        self._event(
            "trial",
            number=record.number,
            status=scores.status,
            reason=scores.reason,
            accuracy=scores.accuracy,
            loss=scores.loss,
            latency_ms=scores.latency_ms,
            macs=scores.macs,
            params=scores.params,
            costs=dict(scores.costs),
            seconds=scores.seconds,
            best=None if standing.best is None else standing.best.number,
            hypervolume=record.hypervolume,
            done=standing.done,
            total=standing.total,
            running=standing.running,
            sampler=standing.doing,
            evaluations_per_s=self._pace.per_second,
            seconds_left=self._pace.seconds_left(standing.total - standing.done, most=most),
        )

    def _event(self, kind: str, **values: Any) -> None:
        self._write(json.dumps({"event": kind, **_plain(values)}, allow_nan=False))


def _plain(value: Any) -> Any:
    """Return a value with nulls for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
