"""Turns a task's one-line description into the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pydantic

from autoprune.errors import TaskError, UnknownNameError
from autoprune.network.factory import FactoryCall, call_factory, module_exists, parse_call
from autoprune.tasks.base import Task
from autoprune.tasks.registry import TASKS

_FACTORY_FORMS = ("package.module:factory", "path/file.py:factory")


def load_task(
    spec: str,
    *,
    batch: int | None = None,
    search_samples: int | None = None,
    options: Mapping[str, object] | None = None,
) -> Task:
    """Return the task that ``spec`` describes.

    Args:
        spec: A registered name with what it takes after a colon (``digits``, ``cifar10:FOLDER``,
            ``image-folder:FOLDER``), or a function of your own that returns a
            :class:`~autoprune.tasks.base.Task`: ``package.module:factory`` or
            ``path/file.py:factory``, literal arguments in brackets allowed.
        batch: Deployment batch; ``None`` is the task's own default.
        search_samples: Most samples of the search split one evaluation uses; likewise.
        options: Further keyword options of the task (``size``, ``mean``, ``std``, ...).

    Raises:
        UnknownNameError: No task and no module has that name.
        TaskError: The data or the options are wrong (all wrong options are listed), or a factory
            fails or returns something else.
    """
    given = {"batch": batch, "search_samples": search_samples}
    keywords: dict[str, object] = dict(options or {})
    keywords |= {key: value for key, value in given.items() if value is not None}
    name, _, target = spec.strip().partition(":")
    if name in TASKS.names():
        return _registered(name, target, keywords)
    call = parse_call(spec, error=TaskError)
    if call is None or not _importable(call):
        raise UnknownNameError("task", name, [*TASKS.names(), *_FACTORY_FORMS])
    call = dataclasses.replace(call, kwargs={**call.kwargs, **keywords})
    # An abstract class serves isinstance as well as any.
    return call_factory(call, Task, error=TaskError)  # type: ignore[type-abstract]


def absolute_spec(spec: str) -> str:
    """Return ``spec`` with its folder or file by an absolute path, so that it holds anywhere."""
    name, _, target = spec.strip().partition(":")
    if name in TASKS.names() and target:
        return f"{name}:{Path(target).expanduser().absolute()}"
    if name.endswith(".py"):
        return f"{Path(name).expanduser().absolute()}:{target}"
    return spec


def _registered(name: str, target: str, keywords: dict[str, object]) -> Task:
    """Return the registered task, its options validated together."""
    factory = pydantic.validate_call(TASKS[name])
    try:
        return factory(target, **keywords)
    except pydantic.ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        )
        raise TaskError(f"wrong options for the task {name!r}: {faults}") from error


def _importable(call: FactoryCall) -> bool:
    """Whether the call names a file, or a module whose top level can be found."""
    return call.in_file or module_exists(call.head)
