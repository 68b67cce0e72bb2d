"""Where the networks of a fine-tuning's stages come from: cut from what was trained before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import nn

from autoprune.errors import RunError
from autoprune.evaluation import unit_order
from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser
from autoprune.pruning.surgery import Surgeon
from autoprune.run.finished import FinishedRun
from autoprune.run.preparation import Say, unit_scores
from autoprune.tasks.base import TrainingTask
from autoprune.tuning.checkpoint import Checkpoint, fill_network, network_tensors
from autoprune.tuning.initial import from_scratch, rewound
from autoprune.tuning.loop import Check, Tuned, check_of
from autoprune.tuning.stages import stage_plan
from autoprune.tuning.tune import ready


@dataclasses.dataclass(frozen=True)
class Stage:
    """A network between two prunings.

    Attributes:
        number: Of the stage, from 1.
        plan: How the network is cut.
        model: The network, before or after its training.
        history: Every check so far with its stage, steps and seconds counted over all stages.
    """

    number: int
    plan: PruningPlan
    model: nn.Module
    history: tuple[tuple[int, Check], ...] = ()

    def trained(self, tuned: Tuned, steps_before: int) -> Stage:
        """Return the stage with its trained network."""
        seconds = self.history[-1][1].seconds if self.history else 0.0
        checks = tuple(
            (
                self.number,
                dataclasses.replace(
                    check, step=check.step + steps_before, seconds=check.seconds + seconds
                ),
            )
            for check in tuned.history
        )
        return dataclasses.replace(self, model=tuned.model, history=self.history + checks)

    def write(self, path: Path) -> None:
        """Write the stage before its training, whole or not at all."""
        facts = {
            "stage": self.number,
            "plan": self.plan.to_json(),
            "history": [[number, check.plain()] for number, check in self.history],
        }
        Checkpoint(facts, network_tensors(self.model, "begun")).write(path)

    @classmethod
    def read(cls, path: Path, network: Network) -> Stage:
        """Return the stage that :meth:`write` wrote.

        Raises:
            RunError: The file is damaged or another network's.
        """
        stored = Checkpoint.read(path)
        try:
            number, plan = stored.facts["stage"], PruningPlan.from_json(stored.facts["plan"])
            history = tuple((stage, check_of(values)) for stage, values in stored.facts["history"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error!r}; begin again with --restart") from None
        model = Surgeon(network).cut(plan)
        fill_network(model, stored.tensors, "begun")
        return cls(number, plan, model, history)


class Prunings:
    """Cuts a network of a finished search in one or several steps."""

    def __init__(
        self, finished: FinishedRun, task: TrainingTask, *, trial: int, init: str, stages: int,
        seed: int, say: Say,
    ) -> None:  # fmt: skip
        """Store parameters.

        Args:
            finished: The search.
            task: Its task.
            trial: Whose widths and blocks are left at the end.
            init: ``"pruned"``, ``"scratch"`` or ``"rewind:FILE"``.
            stages: How many steps there are.
            seed: Of random weights.
            say: Hears where a criterion fell back to another.
        """
        self.finished, self.task, self.trial = finished, task, trial
        self.init, self.stages, self.seed, self.say = init, stages, seed, say
        self.final = finished.plan(trial)

    def first(self) -> Stage:
        """Return what the first training begins with; of a single one it is the trial's network."""
        dense = self.finished.prepared.network
        plan = self.final
        if self.stages > 1:
            order = self.finished.evaluator.plan.order
            plan = stage_plan(dense, self.final, order=order, before=PruningPlan({}),
                              share=1 / self.stages)  # fmt: skip
        return Stage(1, plan, self._begun(plan, dense))

    def after(self, stage: Stage) -> Stage:
        """Return what the next training begins with: importance and repair are made anew."""
        dense = self.finished.prepared.network
        grown = Surgeon(dense).grow(stage.plan, stage.model.cpu())
        network = dataclasses.replace(dense, model=grown)
        number = stage.number + 1
        plan = stage_plan(
            dense,
            self.final,
            order=self._order(network),
            before=stage.plan,
            share=number / self.stages,
        )
        return Stage(number, plan, self._begun(plan, network), stage.history)

    def _order(self, network: Network) -> Mapping[str, Int[np.ndarray, " _"]]:
        """Return units from the most to the least important, by the criterion of the search."""
        settings = self.finished.directory.record.settings
        batches = self.task.calibration(settings.calibration_samples)
        name = settings.criterion or "l2"
        scores = unit_scores(name, settings, network, batches, None, self.say)
        return {group.name: unit_order(scores[group.name], group.size) for group in network.groups}

    def _begun(self, plan: PruningPlan, network: Network) -> nn.Module:
        """Return the network of a plan, cut from a network of full size, ready to be trained."""
        dense = self.finished.prepared.network
        if self.init == "pruned":
            return ready(self._repaired(plan, network), self.task)
        if self.init == "scratch":
            return from_scratch(self.finished.network(self.trial), seed=self.seed)
        return rewound(dense, plan, Path(self.init.removeprefix("rewind:")).expanduser())

    def _repaired(self, plan: PruningPlan, network: Network) -> nn.Module:
        if self.stages == 1:
            return self.finished.network(self.trial)
        settings = self.finished.directory.record.settings
        batches = self.task.calibration(settings.calibration_samples)
        return build_realiser(settings.realise, network, batches)(plan)
