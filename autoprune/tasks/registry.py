"""Where tasks are found by name."""

from __future__ import annotations

from collections.abc import Callable

from autoprune.registry import Registry
from autoprune.tasks.base import Task

#: Makes a task from what follows its name (``""`` where nothing does) and keyword options.
TaskFactory = Callable[..., Task]

#: Every task that ``load_task`` knows by name; one file in this package registers each.
TASKS: Registry[TaskFactory] = Registry("task", package="autoprune.tasks")
