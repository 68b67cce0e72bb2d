"""What Tune calls: a searcher that asks the study, and a callback that knows why trials failed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from autoprune.execution.ray.exchange import OVER, Exchange

_TIMES = {1: "once", 2: "twice"}


class StudySearcher(Searcher):
    """Hands Tune the study's proposals and the study Tune's results."""

    def __init__(self, exchange: Exchange) -> None:
        """Store parameters."""
        super().__init__()
        self._exchange = exchange

    def suggest(  # type: ignore[override] # the end is a string, which its annotation leaves out
        self, trial_id: str
    ) -> dict[str, str] | str | None:
        """Return the next candidate as JSON, ``None`` for none now, or that there is no more."""
        proposal = self._exchange.suggest(trial_id)
        if proposal == OVER:
            return str(Searcher.FINISHED)
        return None if proposal is None else {"proposal": proposal}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record a result; an error is recorded by the callback that knows its text."""
        if result is not None and not error:
            self._exchange.finish(trial_id, result["evaluation"])

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study is the state."""

    def __getstate__(self) -> dict[str, object]:
        # Tune writes a copy of its settings, and us with them; nothing is ever read from it.
        return {}


class Failures(tune.Callback):
    """Tells the study why a Tune trial failed."""

    def __init__(self, exchange: Exchange, *, attempts: int) -> None:
        """Store parameters.

        Args:
            exchange: Takes the reasons.
            attempts: How often a trial was begun when it has failed.
        """
        self._exchange = exchange
        self._times = _TIMES.get(attempts, f"{attempts} times")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: object) -> None:
        """Hand on the first line of the last failure."""
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        lines = [line for line in text.splitlines() if line and not line.startswith("Failure #")]
        # A worker that could not even be made has a traceback, whose last line says why.
        unmade = bool(lines) and "creation task" in lines[0]
        detail = lines[-1 if unmade else 0].strip() if lines else "no detail"
        self._exchange.fail(trial.trial_id, f"worker died, {self._times}: {detail}")

    def __getstate__(self) -> dict[str, object]:
        # As for the searcher.
        return {}
