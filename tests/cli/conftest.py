"""What tests of the command line share: a tiny model of the user's own, and a terminal."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

#: A model and a task of the user's own, small enough to search in a blink.
OWN = """
import torch
from torch import nn
from autoprune.testing.tasks import TeacherTask


class OwnTask(TeacherTask):  # lives in this file alone, and must reach the workers all the same
    name = "own"


def net():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5))


def task():
    return OwnTask(net(), shape=(2, 3, 8, 8))
"""


class Terminal:
    """What programs see as a terminal, and all that was written to it."""

    def __init__(self, columns, rows):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._read = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self.master, 65536):
                self._read.append(data)

    def close(self):
        os.close(self.slave)
        self._thread.join(10)
        os.close(self.master)

    @property
    def raw(self):
        return b"".join(self._read)

    @property
    def text(self):
        """Everything that was written, without colours and movements of the cursor."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07", "", self.raw.decode())
        return plain.replace("\r\n", "\n").replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdin, stdout and stderr of this process a terminal while a block runs."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    @contextlib.contextmanager
    def opened(columns=100, rows=30, encoding="utf-8"):
        shown = Terminal(columns, rows)
        with contextlib.ExitStack() as stack:
            for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
                stream = open(os.dup(shown.slave), mode, encoding=encoding)  # noqa: SIM115
                stack.callback(stream.close)
                monkeypatch.setattr(sys, name, stream)
            # rich asks what is called stdin, stdout and stderr for the size, not its own file
            for number in range(3):
                before = os.dup(number)
                os.dup2(shown.slave, number)
                stack.callback(os.close, before)
                stack.callback(os.dup2, before, number)
            yield shown
        monkeypatch.undo()
        shown.close()

    return opened


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Arguments that name the tiny model and task, from the folder that they are in."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return ("own.py:net", "--data", "own.py:task")
