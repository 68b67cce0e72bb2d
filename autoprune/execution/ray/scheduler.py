"""Which trial gets a worker that is free: not one whose own worker is about to come up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

#: Seconds after which a trial no longer waits for a worker of its own, which may never come: the
#: node that had room for it may be lost.
PATIENCE_S = 60.0


class PatientScheduler(FIFOScheduler):
    """Lets trials wait for the workers that were started for them.

    Tune's own gives a free worker to the oldest trial that waits and stops the worker that is
    starting for it. While evaluations are shorter than the start of a worker, most workers then
    never come up. Where nothing is chosen here, Tune gives the free worker to the next proposal,
    which has none.
    """

    def __init__(
        self, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Store parameters.

        Args:
            patience_s: Seconds after which a trial takes any worker that is free.
            clock: Returns seconds; for tests.
        """
        super().__init__()  # type: ignore[no-untyped-call] # Ray annotates no constructor
        self._patience_s, self._clock = patience_s, clock
        self._since: dict[Trial, float] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Note since when a trial waits; also called for one that begins again."""
        self._since[trial] = self._clock()

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial that has waited longest, where that is too long."""
        for trial in [trial for trial in self._since if trial.status != Trial.PENDING]:
            del self._since[trial]
        longest = min(self._since, key=self._since.__getitem__, default=None)
        if longest is None or self._clock() - self._since[longest] < self._patience_s:
            return None
        return longest

    def __getstate__(self) -> dict[str, object]:
        # Tune writes a copy of its settings, and us with them; nothing is ever read from it.
        return {}
