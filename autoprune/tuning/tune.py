"""Fine-tuning in one call."""

from __future__ import annotations

from typing import Any

from torch import nn

from autoprune.network.copies import deep_copy
from autoprune.tasks.base import Task, needs_training
from autoprune.tuning.features import Feature
from autoprune.tuning.loop import Tuner
from autoprune.tuning.settings import TuneSettings
from autoprune.tuning.statistics import own_statistics

#: Training samples that BatchNorm statistics are taken from before the first step.
STATISTICS_SAMPLES = 256


def tune(
    model: nn.Module,
    teacher: nn.Module | None,
    task: Task,
    *,
    steps: int,
    features: tuple[Feature, ...] = (),
    **settings: Any,
) -> nn.Module:
    """Return a fine-tuned copy of a pruned network, in eval mode.

    Nothing is scored unless ``checks`` is given, so that whoever calls it can score the result as
    it scores others. The same arguments give the same network, on one device.

    Example:
        >>> promoted = tune(candidate, network.model, task, steps=50)  # doctest: +SKIP

    Args:
        model: The network to begin with, on the device to train on; not changed.
        teacher: The unpruned network, whose answers are learnt; ``None`` for the task alone.
        task: Must be a :class:`~autoprune.tasks.base.TrainingTask`.
        steps: Optimiser steps.
        features: What is compared with the teacher beside its answers.
        **settings: Other fields of :class:`~autoprune.tuning.settings.TuneSettings`.

    Raises:
        SettingsError: A setting is wrong.
        TaskError: The task gives no batches to train on.
        RunError: The loss is not finite.
    """
    chosen = TuneSettings.checked({"checks": 0, **settings, "steps": steps})
    data = needs_training(task)
    return Tuner(ready(model, data), teacher, data, settings=chosen, features=features).run().model


def ready(model: nn.Module, task: Task) -> nn.Module:
    """Return a copy of a repaired network that computes the same in training mode, nearly."""
    begun = deep_copy(model)
    own_statistics(begun, task.calibration(STATISTICS_SAMPLES))
    return begun
