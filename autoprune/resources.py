"""Finds the data folders that travel with autoprune, installed or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return the folder ``name`` (``"search_spaces"`` or ``"hardware_profiles"``).

    A wheel carries the folders inside the package; an editable install reads the checkout's.

    Raises:
        FileNotFoundError: Neither place has it, so the installation is broken.
    """
    for candidate in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"autoprune's data folder {name!r} is missing; reinstall autoprune")
