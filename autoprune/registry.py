"""A named collection of plug-ins; the decorator is the only wiring."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from autoprune.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to plug-ins and imports the package they live in on first use.

    A plug-in is one file in ``package`` that calls :meth:`register`; nothing else lists it.

    >>> colours: Registry[str] = Registry("colour")
    >>> colours.register("red")("#f00")
    '#f00'
    >>> colours["red"]
    '#f00'
    """

    def __init__(self, kind: str, *, package: str | None = None) -> None:
        """Store parameters.

        Args:
            kind: What is registered, in the singular, for error messages.
            package: Dotted package whose modules hold the plug-ins; ``None`` when they register
                themselves otherwise.
        """
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._loaded = package is None

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that stores its argument under ``name``.

        Raises:
            ValueError: ``name`` is taken by another object.
        """

        def store(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            return entry

        return store

    def __getitem__(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            UnknownNameError: No such entry; the message offers the nearest.
        """
        self._load()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries) from None

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._load()
        return sorted(self._entries)

    def _load(self) -> None:
        if self._loaded or self.package is None:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
