"""What shows a search: the ways there are, and what each can do."""

from __future__ import annotations

import enum
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from autoprune.execution.driver import Listener
    from autoprune.run import Run, SearchResult


class Mode(enum.StrEnum):
    """Ways to show a search."""

    live = "live"
    plain = "plain"
    quiet = "quiet"
    jsonl = "jsonl"


class View(Protocol):
    """Shows a search from its first line to its last."""

    def note(self, sentence: str) -> None:
        """Tell an oddity that stops nothing."""

    def preparing(self) -> AbstractContextManager[object]:
        """Show that the network is traced while the body runs."""
        ...

    def searching(self, run: Run) -> AbstractContextManager[Listener]:
        """Show the search while the body runs; what is yielded listens to it."""
        ...

    def finished(self, result: SearchResult, run: Run) -> None:
        """Show what was found."""

    def stopped(self, run: Run | None) -> None:
        """Say how a stopped search goes on; without a run nothing was written."""
