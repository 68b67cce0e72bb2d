"""A whole search: settings in, a directory with the Pareto front and the best network out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from autoprune.errors import SettingsError
from autoprune.execution.driver import Listener
from autoprune.run.front import FrontPoint, ParetoFront
from autoprune.run.pipeline import Run
from autoprune.run.preparation import Say
from autoprune.run.results import SearchResult
from autoprune.run.settings import RunSettings
from autoprune.tasks.base import Task

__all__ = ["FrontPoint", "ParetoFront", "Run", "RunSettings", "SearchResult", "resume", "search"]

_logger = logging.getLogger("autoprune")


def search(
    model: nn.Module | str = "digits",
    task: Task | str | None = None,
    *,
    device: str,
    budget_ms: float | None = None,
    output: str | os.PathLike[str] | None = None,
    listeners: Sequence[Listener] = (),
    say: Say = _logger.info,
    **settings: Any,
) -> SearchResult:
    """Search for the Pareto front of pruned networks, and return it.

    Example:
        >>> import autoprune
        >>> result = autoprune.search(  # doctest: +SKIP
        ...     "digits", device="jetson", budget_ms=10.0, trials=50
        ... )
        >>> model = result.load_best()  # doctest: +SKIP

    Args:
        model: A trained module, which is not changed, or one line that names one.
        task: Data and metric, or one line that names them; ``None`` is the model's own, which only
            ``"digits"`` has.
        device: Name or path of a device profile.
        budget_ms: Latency that no candidate may exceed, for one batch of the task.
        output: Run directory; by default ``runs/<UTC time>-<model>``.
        listeners: Called after every evaluation.
        say: Hears of oddities that stop nothing; logged by default.
        **settings: Further fields of :class:`RunSettings`.

    Raises:
        AutopruneError: A setting is wrong, or something named does not exist or fit.
    """
    if task is None:
        task = own_task(model)
    given = {
        "model": model if isinstance(model, str) else None,
        "data": task if isinstance(task, str) else None,
        "device": device,
        "budget_ms": budget_ms,
        **settings,
    }
    run = Run.create(
        RunSettings.checked(given),
        output=output,
        model=None if isinstance(model, str) else model,
        task=None if isinstance(task, str) else task,
        say=say,
    )
    return run.execute(listeners=listeners, say=say)


def resume(
    directory: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    listeners: Sequence[Listener] = (),
    say: Say = _logger.info,
    **limits: Any,
) -> SearchResult:
    """Continue a search where it stopped; no finished trial is lost or evaluated again.

    Args:
        directory: The run directory.
        model: The model, where the search was given an object.
        task: The task, where the search was given an object.
        listeners: Called after every evaluation.
        say: Hears of oddities that stop nothing; logged by default.
        **limits: New ``trials`` (in total), ``time_limit`` or ``workers``; the rest stays.

    Raises:
        AutopruneError: The directory holds no run of this version, or something it names is gone.
    """
    run = Run.resume(directory, model=model, task=task, say=say, limits=limits)
    return run.execute(listeners=listeners, say=say)


def own_task(model: nn.Module | str) -> str:
    """Return the task that a model brings along.

    Raises:
        SettingsError: It brings none.
    """
    if model == "digits":
        return "digits"
    name = model if isinstance(model, str) else type(model).__name__
    raise SettingsError(
        f"no data for the model {name!r}: give --data image-folder:DIR, cifar10:DIR or "
        "file.py:factory (in Python: task=)"
    )
