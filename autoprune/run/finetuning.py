"""Fine-tunes networks of a finished search, and writes each as a package."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from torch import nn

from autoprune.errors import RunError, SettingsError
from autoprune.export.package import PLAN_FILE, PackageMetrics, read_package, save_package
from autoprune.files import write_atomically
from autoprune.run.directory import FINETUNED_FILE, FINETUNED_FOLDER
from autoprune.run.finished import FinishedRun
from autoprune.run.pick import picked_trials
from autoprune.run.preparation import Say
from autoprune.run.results import read_results, write_results
from autoprune.run.stages import Prunings, Stage
from autoprune.tasks.base import Task, TrainingTask, needs_training
from autoprune.tuning.features import block_features
from autoprune.tuning.loop import TuneProgress, Tuner
from autoprune.tuning.parallel import World, this_world
from autoprune.tuning.settings import TuneSettings
from autoprune.tuning.stages import stage_steps, stages_of

SETTINGS_FILE = "finetune.json"
HISTORY_FILE = "history.csv"
CHECKPOINT_FILE = "checkpoint.safetensors"
STAGE_FILE = "stage.safetensors"
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
        schedule: ``"one-shot"``, or ``"iterative:K"`` to prune in K steps and train in between.
        restart: Whether what was fine-tuned before is thrown away.
        every_minutes: How often a checkpoint is written.
    """

    settings: TuneSettings
    init: str = "pruned"
    schedule: str = "one-shot"
    train_on: str = "auto"
    restart: bool = False
    every_minutes: float = 5.0

    def __post_init__(self) -> None:
        """Check initialisation and schedule.

        Raises:
            SettingsError: There is no such one, or one does not go with the other.
        """
        if not re.fullmatch(r"pruned|scratch|rewind:.+", self.init):
            raise SettingsError(f"init: expected pruned, scratch or rewind:FILE, got {self.init!r}")
        if stages_of(self.schedule) > 1 and self.init == "scratch":
            raise SettingsError(
                f"schedule: {self.schedule} trains between prunings, and init scratch trains only "
                "the widths that were found; take --schedule one-shot, or init pruned or rewind"
            )


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
            job = _Job(finished, data, request, trial, world, say)
            if not job.is_done():
                ended = job.run(lambda progress, trial=trial: listener(trial, progress), stop)  # type: ignore[misc] # the default binds the loop's value
                if not ended:
                    return tuple(done)
            if not world.rank:
                done.append(job.result())
                _write_table(finished.directory.path / FINETUNED_FOLDER)
                write_results(read_results(finished.directory.path), finished.directory.path)
    return tuple(done)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The fine-tuning of one network."""

    finished: FinishedRun
    task: TrainingTask
    request: Request
    trial: int
    world: World
    say: Say

    @property
    def folder(self) -> Path:
        return self.finished.directory.path / FINETUNED_FOLDER / str(self.trial)

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT_FILE

    @property
    def stage_file(self) -> Path:
        return self.folder / STAGE_FILE

    def is_done(self) -> bool:
        """Return whether nothing is left to do; old files go where all is begun again."""
        asked = {
            "format": FORMAT,
            "version": VERSION,
            "init": self.request.init,
            "schedule": self.request.schedule,
            "settings": self.request.settings.model_dump(),
        }
        file = self.folder / SETTINGS_FILE
        if self.request.restart and not self.world.rank:
            for old in (self.checkpoint, self.stage_file, self.folder / PLAN_FILE, file):
                old.unlink(missing_ok=True)
        elif file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            known = {"statistics": "batch", **before["settings"]}
            if {"schedule": "one-shot", **before, "settings": known} != asked:
                raise RunError(
                    f"{self.folder} was fine-tuned with other settings, which {SETTINGS_FILE} "
                    "there says; give the same, or begin again with --restart"
                )
        if not self.world.rank:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(asked, indent=2) + "\n")
        return _is_done(self.folder)

    def run(self, listener: Callable[[TuneProgress], None], stop: Callable[[], bool]) -> bool:
        """Train, and write the package; return whether it came to its end."""
        task, settings, schedule = self.task, self.request.settings, self.request.schedule
        network = self.finished.prepared.network
        steps = stage_steps(settings.count_steps(task.training_samples()), stages_of(schedule))
        prunings = Prunings(self.finished, task, trial=self.trial, init=self.request.init,
                            stages=len(steps), seed=settings.seed, say=self.say)  # fmt: skip
        stage = (
            Stage.read(self.stage_file, network) if self.stage_file.exists() else prunings.first()
        )
        for number in range(stage.number, len(steps) + 1):
            # Before the network goes to another device: what is compared is found on this one.
            features = block_features(network, stage.plan, stage.model) if settings.features else ()
            tuned = Tuner(
                stage.model.to(self.world.device),
                network.model,
                task,
                settings=_of_stage(settings, number, steps),
                features=features,
                world=self.world,
            ).run(
                checkpoint=self.checkpoint,
                every_minutes=self.request.every_minutes,
                listener=_after(sum(steps[: number - 1]), sum(steps), listener),
                stop=stop,
            )
            if not tuned.complete:
                return False
            stage = stage.trained(tuned, sum(steps[: number - 1]))
            if number < len(steps):
                stage = prunings.after(stage)
                if not self.world.rank:
                    # Until the next file is there, the stage before is what is gone on from.
                    self.checkpoint.unlink(missing_ok=True)
                    stage.write(self.stage_file)
        if not self.world.rank:
            self._write(stage)
        return True

    def _write(self, stage: Stage) -> None:
        model = stage.model
        score = self.task.evaluate(model, "search")
        update = {
            "accuracy": score.accuracy,
            "loss": score.loss,
            "test_accuracy": self.task.evaluate(model, "test").accuracy,
        }
        history = pd.DataFrame(
            [{"stage": number, **dataclasses.asdict(check)} for number, check in stage.history]
        )
        write_atomically(
            self.folder / HISTORY_FILE, history.to_csv(index=False, lineterminator="\n")
        )
        save_package(
            self.folder,
            model=model.cpu(),
            network=self.finished.prepared.network,
            plan=stage.plan,
            source=self.finished.directory.record.settings.model,
            metrics=self.finished.metrics(self.trial).model_copy(update=update),
        )
        self.checkpoint.unlink(missing_ok=True)
        self.stage_file.unlink(missing_ok=True)

    def result(self) -> Finetuned:
        """Return what the written package says."""
        after = read_package(self.folder).metrics
        return Finetuned(self.trial, self.folder, self.finished.metrics(self.trial), after)


def _of_stage(settings: TuneSettings, number: int, steps: Sequence[int]) -> TuneSettings:
    """Return the settings of a stage: its share of steps and checks, and samples of its own."""
    checks = -(-settings.checks // len(steps))
    update = {"steps": steps[number - 1], "checks": checks, "seed": settings.seed + number - 1}
    return settings.model_copy(update=update)


def _after(
    before: int, steps: int, listener: Callable[[TuneProgress], None]
) -> Callable[[TuneProgress], None]:
    """Return what hears of a stage's steps and tells them counted over all stages."""

    def heard(progress: TuneProgress) -> None:
        done = before + progress.step
        listener(
            dataclasses.replace(
                progress,
                step=done,
                steps=steps,
                seconds_left=progress.seconds_each * (steps - done),
            )
        )

    return heard


def _is_done(folder: Path) -> bool:
    unfinished = any((folder / name).exists() for name in (CHECKPOINT_FILE, STAGE_FILE))
    return (folder / PLAN_FILE).is_file() and not unfinished


def _write_table(folder: Path) -> None:
    """Write one row for each fine-tuned network of a run."""
    rows = []
    for place in sorted(
        (p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    ):
        if _is_done(place):
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
    write_atomically(folder / FINETUNED_FILE, table)
