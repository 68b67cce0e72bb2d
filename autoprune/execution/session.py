"""Signs of life: how drivers of one study know which of them are still at work."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import optuna

#: Attributes of a study that hold a driver's sign of life are named so, and by its identity.
PREFIX = "driver:"

#: Seconds between two signs of life.
INTERVAL_S = 15.0

#: A driver that gave none for so many seconds is taken for dead.
GRACE_S = 60.0


class Session:
    """One driver at work on a study that others work on too.

    Optuna's heartbeats belong to ``Study.optimize`` and to databases, so drivers give signs of life
    as attributes of the study, whatever its storage. Clocks of different machines are not compared:
    a driver is dead when its sign did not change for a while by the clock of who looks.

    Attributes:
        driver: Identity of the driver, the same in every session of its run.
    """

    def __init__(
        self,
        study: optuna.Study,
        driver: str,
        *,
        interval_s: float = INTERVAL_S,
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store parameters.

        Args:
            study: The study.
            driver: Identity of the driver.
            interval_s: Seconds between two signs of life.
            grace_s: Seconds without one after which others are taken for dead.
            clock: Returns seconds; for tests.
        """
        self.driver = driver
        self._study = study
        self._interval_s, self._grace_s, self._clock = interval_s, grace_s, clock
        self._seen: dict[str, tuple[object, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Session:
        """Give the first sign of life, and go on in a thread."""
        self._sign(time.time())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell the others that this driver is gone."""
        self._ended.set()
        self._thread.join()
        try:
            self._sign(None)
        except Exception:
            if error is None:
                raise
            # The storage is what failed, most likely; the others notice by themselves.

    def lost(self, driver: str) -> bool:
        """Return whether a driver has ended, or gave no sign of life for too long.

        Args:
            driver: Identity of a driver; of one that never gave a sign the time counts from the
                first question.
        """
        sign = self._study.user_attrs.get(PREFIX + driver)
        if sign is not None and sign["time"] is None:
            return True
        now = self._clock()
        before, since = self._seen.get(driver, (None, now))
        if driver not in self._seen or sign != before:
            self._seen[driver] = (sign, now)
            return False
        return now - since > self._grace_s

    def _sign(self, now: float | None) -> None:
        value: dict[str, Any] = {"time": now, "host": socket.gethostname(), "pid": os.getpid()}
        self._study.set_user_attr(PREFIX + self.driver, value)

    def _beat(self) -> None:
        while not self._ended.wait(self._interval_s):
            try:
                self._sign(time.time())
            except Exception:  # noqa: BLE001 - the next one may get through; the search goes on
                continue
