"""Networks of higher fidelity: a candidate that was promoted is fine-tuned before it is scored."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import SettingsError
from autoprune.evaluation import Evaluator
from autoprune.strategy.space import Candidate
from autoprune.tasks.base import TrainingTask, needs_training
from autoprune.tuning.checkpoint import Checkpoint, fill_network, network_tensors
from autoprune.tuning.order import SampleOrder
from autoprune.tuning.settings import TuneSettings
from autoprune.tuning.tune import tune

#: A short training begins lower than a long one.
LR_FRACTION = 0.3

_RUNG = re.compile(r"(?P<steps>[1-9]\d*)|(?P<epochs>\d*\.?\d+)ep")


def rung_names(value: Any) -> Any:
    """Return ``"40,200,1ep"`` as a tuple of rungs; other values as they are.

    Raises:
        ValueError: One has another form.
    """
    names = tuple(value.replace(" ", "").split(",")) if isinstance(value, str) else value
    for name in names if isinstance(names, list | tuple) else ():
        if not isinstance(name, str) or not _RUNG.fullmatch(name):
            raise ValueError(f"expected steps such as 200 or epochs such as 1.5ep, got {name!r}")
    return names


def rung_steps(rungs: Sequence[str], task: TrainingTask, *, batch: int) -> tuple[int, ...]:
    """Return the optimiser steps after which networks stand on each rung.

    Args:
        rungs: From :func:`rung_names`; passes over the training samples end in ``"ep"``.
        task: Knows how many those are.
        batch: Samples per step.

    Raises:
        SettingsError: They do not rise.
    """
    per_epoch = SampleOrder(task.training_samples(), batch, seed=0).per_epoch
    steps = [
        round(float(rung.removesuffix("ep")) * per_epoch) if rung.endswith("ep") else int(rung)
        for rung in rungs
    ]
    if any(after <= before for before, after in zip([0, *steps], steps, strict=False)):
        raise SettingsError(f"rungs: expected more training from rung to rung, got {steps} steps")
    return tuple(steps)


class TunedEvaluator(Evaluator):
    """An evaluator that fine-tunes candidates of a rung above 0 before it scores them.

    Rung by rung a network goes on from the weights that it had on the rung below, which lie in a
    file; each part of the training has a learning rate that falls to 0. A file that is missing, on
    a node that has no common file system with the others, is made again: the same steps give the
    same weights, on one kind of machine.
    """

    def __init__(
        self,
        *arguments: Any,
        rungs: Sequence[str],
        checkpoints: Path,
        tuning: TuneSettings,
        **options: Any,
    ) -> None:
        """Prepare what all candidates share.

        Args:
            *arguments: Of :class:`~autoprune.evaluation.Evaluator`.
            rungs: How far networks are trained, see :func:`rung_steps`.
            checkpoints: Folder of the weights; made where there is none.
            tuning: How networks are trained; steps and checks are the rungs'.
            **options: Of :class:`~autoprune.evaluation.Evaluator`.

        Raises:
            TaskError: The task gives no batches to train on.
            SettingsError: The rungs are wrong.
        """
        super().__init__(*arguments, **options)
        self.tuning, self.checkpoints = tuning, checkpoints
        self.steps = rung_steps(rungs, needs_training(self.task), batch=tuning.batch)

    def build(self, candidate: Candidate) -> nn.Module:
        """Return the network of ``candidate``, trained as far as its rung says."""
        if not candidate.rung:
            return super().build(candidate)
        file = self.checkpoints / f"{candidate.key}.safetensors"
        if not file.exists():
            self._train(candidate, file)
        # Read even where it has just been written: a network that is laid out otherwise in memory
        # is rounded otherwise when it is trained on.
        network = super().build(candidate)
        fill_network(network, Checkpoint.read(file).tensors, "model")
        return network

    def _train(self, candidate: Candidate, file: Path) -> None:
        """Write the weights of a candidate that goes on from the rung below."""
        below = dataclasses.replace(candidate, rung=candidate.rung - 1)
        steps = self.steps[candidate.rung - 1]
        before = self.steps[below.rung - 1] if below.rung else 0
        network = tune(
            self.build(below),
            self.network.model,
            self.task,
            steps=steps - before,
            seed=self.tuning.seed + candidate.rung,
            # What tune() calls features are others than the settings'.
            **self.tuning.model_dump(exclude={"steps", "checks", "seed", "features"}),
        )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        facts = {"rung": candidate.rung, "steps": steps}
        Checkpoint(facts, network_tensors(network, "model")).write(file)
