"""Fine-tunes networks of a finished search, and writes each as a package."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from torch import nn

from autoprune.errors import RunError, SettingsError
from autoprune.export.package import PLAN_FILE, PackageMetrics, read_package, save_package
from autoprune.files import write_atomically
from autoprune.run.finished import FinishedRun
from autoprune.run.pick import picked_trials
from autoprune.run.preparation import Say
from autoprune.tasks.base import Task, TrainingTask, needs_training
from autoprune.tuning.features import block_features
from autoprune.tuning.initial import from_scratch, rewound
from autoprune.tuning.loop import Tuned, TuneProgress, Tuner
from autoprune.tuning.parallel import World, this_world
from autoprune.tuning.settings import TuneSettings
from autoprune.tuning.tune import ready

FOLDER = "finetuned"
SETTINGS_FILE = "finetune.json"
HISTORY_FILE = "history.csv"
CHECKPOINT_FILE = "checkpoint.safetensors"
TABLE_FILE = "finetuned.csv"
FORMAT, VERSION = "autoprune-finetune", 1


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """A network of a search after fine-tuning.

    Attributes:
        trial: Number of its trial.
        folder: Its package.
        before: What the search knew of it.
        after: The same after fine-tuning; the test split was read once, for the result.
    """

    trial: int
    folder: Path
    before: PackageMetrics
    after: PackageMetrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for beside the networks.

    Attributes:
        settings: How to train.
        init: ``"pruned"`` for the repaired weights, ``"scratch"`` for random ones, or
            ``"rewind:FILE"`` for the unpruned network's of an earlier time.
        train_on: ``"auto"``, ``"cpu"``, or what PyTorch calls a device.
        restart: Whether what was fine-tuned before is thrown away.
        every_minutes: How often a checkpoint is written.
    """

    settings: TuneSettings
    init: str = "pruned"
    train_on: str = "auto"
    restart: bool = False
    every_minutes: float = 5.0

    def __post_init__(self) -> None:
        """Check the initialisation.

        Raises:
            SettingsError: There is no such one.
        """
        if not re.fullmatch(r"pruned|scratch|rewind:.+", self.init):
            raise SettingsError(f"init: expected pruned, scratch or rewind:FILE, got {self.init!r}")


def finetune(
    path: str | os.PathLike[str],
    request: Request,
    *,
    pick: str | None = None,
    model: nn.Module | None = None,
    task: Task | None = None,
    listener: Callable[[int, TuneProgress], None] = lambda trial, progress: None,
    stop: Callable[[], bool] = lambda: False,
    say: Say,
) -> tuple[Finetuned, ...]:
    """Fine-tune networks of a search; one that was stopped goes on where it was.

    Args:
        path: The run directory.
        request: How.
        pick: Which networks, see :func:`~autoprune.run.pick.picked_trials`.
        model: The model where the search was given an object.
        task: The task where the search was given an object.
        listener: Hears of every step, with the trial's number.
        stop: Asked after every step whether to stop here.
        say: Hears of oddities that stop nothing.

    Returns:
        The networks that are done; fewer than were picked where it was stopped.

    Raises:
        AutopruneError: The run is not finished or has no such network, the task gives no batches
            to train on, or a network was fine-tuned otherwise before.
    """
    world = this_world(request.train_on)
    finished = FinishedRun.open(path, model=model, task=task, say=say)
    data = needs_training(finished.prepared.task)
    trials = picked_trials(finished.results, pick)
    done: list[Finetuned] = []
    with finished.directory.locked() if not world.rank else contextlib.nullcontext():
        for trial in trials:
            job = _Job(finished, data, request, trial, world)
            if not job.is_done():
                tuned = job.run(lambda progress, trial=trial: listener(trial, progress), stop)  # type: ignore[misc] # the default binds the loop's value
                if not tuned.complete:
                    return tuple(done)
            if not world.rank:
                done.append(job.result())
                _write_table(finished.directory.path / FOLDER)
    return tuple(done)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The fine-tuning of one network."""

    finished: FinishedRun
    task: TrainingTask
    request: Request
    trial: int
    world: World

    @property
    def folder(self) -> Path:
        return self.finished.directory.path / FOLDER / str(self.trial)

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT_FILE

    def is_done(self) -> bool:
        """Return whether nothing is left to do; old files go where all is begun again."""
        asked = {
            "format": FORMAT,
            "version": VERSION,
            "init": self.request.init,
            "settings": self.request.settings.model_dump(),
        }
        file = self.folder / SETTINGS_FILE
        if self.request.restart and not self.world.rank:
            for old in (self.checkpoint, self.folder / PLAN_FILE, file):
                old.unlink(missing_ok=True)
        elif file.is_file() and json.loads(file.read_text(encoding="utf-8")) != asked:
            raise RunError(
                f"{self.folder} was fine-tuned with other settings, which {SETTINGS_FILE} there "
                "says; give the same, or begin again with --restart"
            )
        if not self.world.rank:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(asked, indent=2) + "\n")
        return (self.folder / PLAN_FILE).is_file() and not self.checkpoint.exists()

    def run(self, listener: Callable[[TuneProgress], None], stop: Callable[[], bool]) -> Tuned:
        """Train, and write the package where it came to its end."""
        network, settings = self.finished.prepared.network, self.request.settings
        plan, begun = self.finished.plan(self.trial), self._begun()
        tuned = Tuner(
            begun.to(self.world.device),
            network.model,
            self.task,
            settings=settings,
            features=block_features(network, plan, begun) if settings.features else (),
            world=self.world,
        ).run(
            checkpoint=self.checkpoint,
            every_minutes=self.request.every_minutes,
            listener=listener,
            stop=stop,
        )
        if tuned.complete and not self.world.rank:
            self._write(tuned)
        return tuned

    def _begun(self) -> nn.Module:
        """Return the network to begin with."""
        init = self.request.init
        if init == "pruned":
            return ready(self.finished.network(self.trial), self.task)
        if init == "scratch":
            begun = self.finished.network(self.trial)
            return from_scratch(begun, seed=self.request.settings.seed)
        weights = Path(init.removeprefix("rewind:")).expanduser()
        return rewound(self.finished.prepared.network, self.finished.plan(self.trial), weights)

    def _write(self, tuned: Tuned) -> None:
        score = self.task.evaluate(tuned.model, "search")
        update = {
            "accuracy": score.accuracy,
            "loss": score.loss,
            "test_accuracy": self.task.evaluate(tuned.model, "test").accuracy,
        }
        history = pd.DataFrame([dataclasses.asdict(check) for check in tuned.history])
        write_atomically(
            self.folder / HISTORY_FILE, history.to_csv(index=False, lineterminator="\n")
        )
        save_package(
            self.folder,
            model=tuned.model.cpu(),
            network=self.finished.prepared.network,
            plan=self.finished.plan(self.trial),
            source=self.finished.directory.record.settings.model,
            metrics=self.finished.metrics(self.trial).model_copy(update=update),
        )
        self.checkpoint.unlink(missing_ok=True)

    def result(self) -> Finetuned:
        """Return what the written package says."""
        after = read_package(self.folder).metrics
        return Finetuned(self.trial, self.folder, self.finished.metrics(self.trial), after)


def _write_table(folder: Path) -> None:
    """Write one row for each fine-tuned network of a run."""
    rows = []
    for place in sorted(
        (p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    ):
        if (place / PLAN_FILE).is_file() and not (place / CHECKPOINT_FILE).exists():
            metrics = read_package(place).metrics
            rows.append(
                {
                    "trial": int(place.name),
                    "finetuned_accuracy": metrics.accuracy,
                    "finetuned_loss": metrics.loss,
                    "finetuned_test_accuracy": metrics.test_accuracy,
                    "latency_ms": metrics.latency_ms,
                    "macs": metrics.macs,
                    "params": metrics.params,
                }
            )
    table = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    write_atomically(folder / TABLE_FILE, table)
