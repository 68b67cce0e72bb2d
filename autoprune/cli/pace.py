"""How fast a search goes, and how long it will go on."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

#: Evaluations that the pace is taken over, at least.
WINDOW = 64


class Pace:
    """Evaluations per second, without what came before the first of them.

    Workers that start and the first pass of each take many times an evaluation. As many evaluations
    as run side by side are therefore only the starting line, and of later ones the last count.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Store parameters.

        Args:
            clock: Returns seconds; for tests.
        """
        self._clock = clock
        self._ended: collections.deque[float] = collections.deque()
        self._first_wave = 0

    def note(self, *, running: int) -> None:
        """Note that an evaluation has ended.

        Args:
            running: Evaluations that go on beside it.
        """
        if not self._ended:
            self._first_wave = running + 1
        self._ended.append(self._clock())
        if len(self._ended) > max(WINDOW, 4 * self._first_wave):
            self._ended.popleft()
            self._first_wave = 1

    @property
    def per_second(self) -> float | None:
        """Evaluations per second; ``None`` while too few have ended."""
        counted = len(self._ended) - self._first_wave
        if counted < 1:
            return None
        seconds = self._ended[-1] - self._ended[self._first_wave - 1]
        return counted / seconds if seconds > 0 else None

    def seconds_left(self, evaluations: int, *, most: float | None = None) -> float | None:
        """Return how many seconds are left, by now.

        Args:
            evaluations: How many are left since the last one that was noted.
            most: Seconds that are left at most since then, ``None`` for no limit.

        Returns:
            ``None`` where the pace is not known yet.
        """
        rate = self.per_second
        if rate is None:
            return None
        left = evaluations / rate if most is None else min(evaluations / rate, most)
        return max(0.0, left - (self._clock() - self._ended[-1]))


def clock_text(seconds: float) -> str:
    """Return a time as a clock shows it.

    >>> clock_text(83.4), clock_text(3723)
    ('1:23', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
