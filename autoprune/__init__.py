"""Finds the Pareto front of pruned networks: accuracy against milliseconds on your device.

Everything here is imported on first use; ``import autoprune`` alone loads neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from autoprune.version import __version__

if TYPE_CHECKING:
    from autoprune.export.package import load as load
    from autoprune.network.trace import trace as trace
    from autoprune.run import ParetoFront as ParetoFront
    from autoprune.run import SearchResult as SearchResult
    from autoprune.run import resume as resume
    from autoprune.run import search as search
    from autoprune.tasks.base import Score as Score
    from autoprune.tasks.base import Task as Task

__all__ = [
    "ParetoFront",
    "Score",
    "SearchResult",
    "Task",
    "__version__",
    "load",
    "resume",
    "search",
    "trace",
]

_HOMES = {
    "ParetoFront": "autoprune.run",
    "Score": "autoprune.tasks.base",
    "SearchResult": "autoprune.run",
    "Task": "autoprune.tasks.base",
    "load": "autoprune.export.package",
    "resume": "autoprune.run",
    "search": "autoprune.run",
    "trace": "autoprune.network.trace",
}


def __getattr__(name: str) -> object:
    """Import a public name where it lives and keep it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
