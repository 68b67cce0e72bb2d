"""The file in which a study is kept: Optuna's own format, written so that no fault breaks it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

#: What may wait for the disk until the trial it belongs to ends: all before that line in the file
#: is on the disk then.
_DETAILS = {
    JournalOperation.SET_TRIAL_PARAM,
    JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE,
    JournalOperation.SET_TRIAL_USER_ATTR,
    JournalOperation.SET_TRIAL_SYSTEM_ATTR,
}


class Journal(JournalStorage):
    """A journal that takes all attributes of a trial at once."""

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes: the lines that Optuna writes, in one go.

        Each line by itself takes and leaves the lock, opens the file and reads what others wrote.
        """
        with self._thread_lock:
            line = {
                "op_code": JournalOperation.SET_TRIAL_USER_ATTR,
                "worker_id": self._replay_result.worker_id,
                "trial_id": trial_id,
            }
            self._backend.append_logs(
                [line | {"user_attr": {name: value}} for name, value in attributes.items()]
            )
            self._sync_with_backend()


class JournalFile(JournalFileBackend):
    """Optuna's journal file whose last line is whole, whatever happened to who wrote it.

    Optuna's own backend appends after whatever a killed process or a full disk left of a line,
    and stumbles over both lines from then on.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal, made where there is none.

        Args:
            path: The file; its folder exists.
        """
        self.path = path
        self._exclusive = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._exclusive)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, all of them or none; when a trial has ended it is on the disk.

        That a trial began, and what is noted of it, reaches the disk with its end at the latest:
        waiting for the disk takes milliseconds each time, and a machine that crashes loses the
        evaluation anyway. A process that is killed loses nothing that was appended.

        Raises:
            OSError: They cannot be written; the file is as it was.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._exclusive.acquire()
        try:
            cut_half_line(self.path)  # of another process that was killed meanwhile
            self._append(lines, sync=not all(map(_may_wait, logs)))
        finally:
            self._exclusive.release()

    def _append(self, lines: bytes, *, sync: bool) -> None:
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                written = 0
                while written < len(lines):  # a nearly full disk takes a part
                    written += file.write(lines[written:])
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def mend(self) -> int:
        """Cut back to the last whole line and return how many bytes that took.

        A last line that ends but is no JSON, as a crash of the machine leaves it, is not whole.
        """
        self._exclusive.acquire()
        try:
            return cut_half_line(self.path, parse=True)
        finally:
            self._exclusive.release()


def _may_wait(log: Mapping[str, Any]) -> bool:
    """Return whether a line need not be on the disk at once."""
    begins = log.get("op_code") == JournalOperation.CREATE_TRIAL and (
        log.get("state", TrialState.RUNNING) == TrialState.RUNNING
    )
    return begins or log.get("op_code") in _DETAILS


def cut_half_line(path: Path, *, parse: bool = False) -> int:
    """Cut what follows the last whole line and return how many bytes that were.

    Args:
        path: The file.
        parse: Whether the last line must be JSON as well.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if not parse and file.read() in (b"", b"\n"):
            return 0
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        last = content[content.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end]
        if parse and last and not _is_json(last):
            end -= len(last)
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
        return size - end


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
