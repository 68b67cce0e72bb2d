"""Ends an evaluation that takes too long, where it runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from autoprune.errors import RunError
from autoprune.evaluation import Evaluates, Evaluation
from autoprune.strategy.space import Candidate
from autoprune.tasks.racing import Bar

#: What swallowed the first alarm hears another one after so many seconds.
_AGAIN_S = 1.0


class TimeLimited:
    """Evaluates like another evaluator, but gives up after some seconds.

    A timer of the operating system interrupts Python code in the main thread; a call into a library
    ends first. What never comes back from there needs a process of its own that can be killed.
    """

    def __init__(self, evaluator: Evaluates, seconds: float) -> None:
        """Store parameters.

        Args:
            evaluator: Scores candidates.
            seconds: How long one may take.
        """
        self.evaluator = evaluator
        self.seconds = seconds

    def __call__(self, candidate: Candidate, bar: Bar = ()) -> Evaluation:
        """Return the scores of ``candidate``, failed where they took too long.

        Args:
            candidate: The candidate.
            bar: What another network scored on the first samples.

        Raises:
            RunError: This is not the main thread, where alone a timer interrupts.
        """
        try:
            with alarm(self.seconds):
                return self.evaluator(candidate, bar)
        except TimeoutError as error:
            return self.failed(candidate, f"TimeoutError: {error}")

    def failed(self, candidate: Candidate, reason: str) -> Evaluation:
        """Return the evaluation of a candidate whose scores could not be computed."""
        return self.evaluator.failed(candidate, reason)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise in the body when it takes longer.

    Raises:
        TimeoutError: It took longer.
        RunError: This is not the main thread.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the evaluation took longer than {seconds:g} s")

    if threading.current_thread() is not threading.main_thread():
        raise RunError(
            "a time limit of evaluations needs the main thread of a process; "
            "search there, or with the executor 'ray'"
        )
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
