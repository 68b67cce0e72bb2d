"""Turns a task's one-line description into the task."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

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
            ``image-folder:FOLDER``, ``text:FILE``) and options after a question mark
            (``text:FILE?tokenizer=FOLDER&length=128``,
            ``image-folder:FOLDER?mean=0.5,0.5,0.5``), or a function of your own that returns a
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
    name, target, own = _with_options(name, target)
    if name in TASKS.names():
        several = _options_of(name, tuple)
        split = {key: value.split(",") if key in several else value for key, value in own.items()}
        return _registered(name, target, split | keywords)
    call = parse_call(spec, error=TaskError)
    if call is None or not _importable(call):
        raise UnknownNameError("task", name, [*TASKS.names(), *_FACTORY_FORMS])
    call = dataclasses.replace(call, kwargs={**call.kwargs, **keywords})
    # An abstract class serves isinstance as well as any.
    return call_factory(call, Task, error=TaskError)  # type: ignore[type-abstract]


def absolute_spec(spec: str) -> str:
    """Return ``spec`` with its folders and files by absolute paths, so that it holds anywhere."""
    name, _, target = spec.strip().partition(":")
    name, target, own = _with_options(name, target)
    if name in TASKS.names() and (target or own):
        files = _options_of(name, Path)
        where = f":{Path(target).expanduser().absolute()}" if target else ""
        options = "&".join(
            f"{key}={Path(value).expanduser().absolute() if key in files else value}"
            for key, value in own.items()
        )
        return f"{name}{where}{'?' if own else ''}{options}"
    if name.endswith(".py"):
        return f"{Path(name).expanduser().absolute()}:{target}"
    return spec


def _with_options(name: str, target: str) -> tuple[str, str, dict[str, str]]:
    """Return a name, what it takes, and the options ``?key=value&key=value`` at their end.

    A question mark that is followed by anything else belongs to a path.
    """
    whole = f"{name}:{target}" if target else name
    found = re.fullmatch(r"(.*?)\?(\w+=[^&?]*(?:&\w+=[^&?]*)*)", whole)
    if found is None:
        return name, target, {}
    name, _, target = found[1].partition(":")
    return name, target, dict(pair.split("=", 1) for pair in found[2].split("&"))


def _options_of(name: str, kind: type) -> set[str]:
    """Return the options of a registered task that are of a type."""
    hints = get_type_hints(TASKS[name])
    return {key for key, hint in hints.items() if kind in (hint, get_origin(hint), *get_args(hint))}


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
