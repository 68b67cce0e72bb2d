"""Writes files whole or not at all: a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; on a clean exit it takes the place of ``path``.

    The temporary file lies in the same folder and ends like ``path``, so writers that look at the
    ending work. It is flushed to the disk before the rename, and removed when the body raises.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        The path the body must create.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}.{target.name}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows cannot open a folder
        _flush(target.parent)


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` to ``path`` through :func:`atomic_path`.

    Args:
        path: The file to write; its folder must exist.
        data: The content; text is written as UTF-8 with its line ends as they are.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def _flush(path: Path) -> None:
    """Wait until what was written to ``path`` (a file or a folder) is on the disk."""
    # Windows flushes only through a descriptor that may write.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
