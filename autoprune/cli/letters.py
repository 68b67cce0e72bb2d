"""Characters that a terminal lacks, shown by the nearest ones that it has."""

from __future__ import annotations

import codecs
import io
from typing import TextIO

#: The name under which Python finds :func:`nearest`.
_ERRORS = "autoprune-nearest"
_NEAREST = (
    str.maketrans({"\N{NO-BREAK SPACE}": " ", "\N{EN DASH}": "-", "\N{MINUS SIGN}": "-"})
    | str.maketrans({"±": "~", "…": "."})
    | str.maketrans("·●★▾◆─┊┤│", ".o*v#-|||")  # of plots
    | str.maketrans("▁▂▃▄▅▆▇█", "_..--==#")
    | str.maketrans("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", r"|/-\|/-\|/".replace(r"\\", "\\"))  # what turns while one waits
)


def make_readable(stream: TextIO) -> None:
    """Let a stream of few characters write the nearest ones instead of failing."""
    encoding = (stream.encoding or "utf-8").lower()
    if isinstance(stream, io.TextIOWrapper) and not encoding.startswith("utf"):
        codecs.register_error(_ERRORS, nearest)
        stream.reconfigure(errors=_ERRORS)


def nearest(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for the characters that could not be written, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_NEAREST)
    return "".join(letter if letter.isascii() else "?" for letter in lacking), error.end
