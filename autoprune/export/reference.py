"""The architecture that a package names: by a word that means the same on another machine."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from autoprune.errors import ExportError, ModelError, UnknownNameError
from autoprune.network.factory import parse_call
from autoprune.network.source import ModelSource


def portable(source: str, folder: Path) -> str:
    """Return ``source`` as a package in ``folder`` records it.

    A Python file is recorded by its path from the folder: a project can be moved as a whole.

    Args:
        source: As :meth:`~autoprune.network.source.ModelSource.parse` takes it.
        folder: The package.
    """
    call = parse_call(source, error=ModelError)
    if call is None or not call.in_file:
        return source
    file = Path(call.head).expanduser().resolve()
    try:
        head = Path(os.path.relpath(file, folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        head = file.name
    return head + _behind(source)


def moved(source: str, old: Path, new: Path) -> str:
    """Return what a copy of a package records; ``source`` as it is where its file is not found.

    Args:
        source: What the package in ``old`` records.
        old: The package.
        new: The folder of the copy.
    """
    try:
        return portable(_located(source, old), new)
    except ModelError:
        return source


def built(source: str, folder: Path, *, trusted: bool) -> nn.Module:
    """Return the architecture that a package in ``folder`` records.

    A Python file is looked for at its path from the folder, then by its name in the working
    directory.

    Args:
        source: What :func:`portable` returned.
        folder: The package.
        trusted: Whether Python code outside autoprune, torchvision and timm may run.

    Raises:
        ExportError: It may not run, is not there, or fails.
    """
    try:
        if not trusted and not _harmless(source):
            raise ExportError(
                f"this network's architecture comes from {source!r}, which would run Python "
                "code named by the file; build it yourself and pass it as model=, or pass "
                "trust_source=True (--trust-source on the command line) if you trust that code"
            )
        return ModelSource.parse(_located(source, folder)).build()
    except (ModelError, UnknownNameError) as error:
        raise ExportError(
            f"the architecture {source!r} cannot be built: {error}; or pass it as model="
        ) from error


def _located(source: str, folder: Path) -> str:
    """Return ``source`` with the file it names, found on this machine."""
    call = parse_call(source, error=ModelError)
    if call is None or not call.in_file:
        return source
    places = [folder.resolve() / call.head, Path.cwd() / Path(call.head).name]
    found = next((place.resolve() for place in places if place.is_file()), None)
    if found is None:
        raise ModelError(f"there is no Python file {' or '.join(map(str, places))}")
    return str(found) + _behind(source)


def _behind(source: str) -> str:
    """Return what stands behind the file's name, ``":factory(56)"``."""
    return source[source.index(".py:") + len(".py") :]


def _harmless(source: str) -> bool:
    """Return whether a source runs no foreign code; unlike parsing it, this opens no file."""
    call = parse_call(source, error=ModelError)
    named = call is not None and ModelSource(source, call=call).trusted
    return named or source == "digits" or source.startswith("hf:")
