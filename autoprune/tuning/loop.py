"""The training loop: steps, scores on the search split, checkpoints, and an exact way back."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import RunError, TaskError
from autoprune.network.copies import deep_copy
from autoprune.tasks.base import Score, TrainingTask, evaluation_mode
from autoprune.tasks.numerics import numerics_for
from autoprune.tuning.averaging import MovingAverage
from autoprune.tuning.checkpoint import (
    Checkpoint,
    fill_network,
    fill_optimiser,
    network_tensors,
    optimiser_tensors,
)
from autoprune.tuning.distillation import distillation_loss
from autoprune.tuning.features import Feature, feature_loss, noted
from autoprune.tuning.optimiser import build_optimiser, choose_parameters
from autoprune.tuning.order import SampleOrder, augmentation_rng, torch_seed
from autoprune.tuning.parallel import Single, World
from autoprune.tuning.settings import TuneSettings
from autoprune.tuning.statistics import keep_statistics

#: What to do when training diverges.
_CALMER = "take a lower --lr-fraction, --clip 1, or --precision fp32"


@dataclasses.dataclass(frozen=True)
class Check:
    """A score on the search split.

    Attributes:
        step: Steps before it.
        seconds: Time spent on training and scoring until then.
        train_loss: Mean training loss since the check before; NaN where there was no step.
        loss: On the search split, in nats.
        accuracy: Fraction right on the search split.
    """

    step: int
    seconds: float
    train_loss: float
    loss: float
    accuracy: float

    def better_than(self, other: Check) -> bool:
        """Return whether it is more accurate, or as accurate with a lower loss."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)

    def plain(self) -> list[float | int | None]:
        """Return the values for JSON, which has no NaN."""
        return [None if value != value else value for value in dataclasses.astuple(self)]


def check_of(values: Sequence[float | int | None]) -> Check:
    """Return the check that :meth:`Check.plain` made plain."""
    step, *numbers = values
    assert step is not None
    return Check(int(step), *(math.nan if n is None else float(n) for n in numbers))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneProgress:
    """Where a fine-tuning stands after a step.

    Attributes:
        step: Steps done.
        steps: Steps of the whole fine-tuning.
        train_loss: Mean training loss since the last check.
        last: The last check.
        best: The best check.
        seconds_each: Time that a step takes, with its share of the scores.
        seconds_left: Time that the rest will take at the present rate.
    """

    step: int
    steps: int
    train_loss: float
    last: Check | None
    best: Check | None
    seconds_each: float
    seconds_left: float


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What fine-tuning made.

    Attributes:
        model: The network, in eval mode; where it was scored, the best one.
        history: Every check, the first before any step.
        best: Which of them is the network's; ``None`` without checks.
        complete: Whether it ended by itself; it goes on from its checkpoint otherwise.
    """

    model: nn.Module
    history: tuple[Check, ...]
    best: Check | None
    complete: bool


class Tuner:
    """Trains a copy of a pruned network.

    Order of samples, augmentation and dropout follow from seed and step alone, so a run that is
    continued from a checkpoint gives the same weights as one that never stopped, on one device.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        task: TrainingTask,
        *,
        settings: TuneSettings,
        features: tuple[Feature, ...] = (),
        world: World | None = None,
    ) -> None:
        """Copy both networks to the device and prepare the optimiser.

        Args:
            model: The network to begin with; not changed.
            teacher: The unpruned network; ``None`` learns from the task alone.
            task: Data and loss.
            settings: How to train.
            features: What is compared with the teacher beside its answers.
            world: The processes that train together; ``None`` is this one, on the device of
                ``model``.

        Raises:
            ModelError: There is nothing to train.
            TaskError: bfloat16 was asked for, and the network does not run in it.
        """
        here = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.world = world or Single(here)
        self.task, self.settings, self.features = task, settings, features
        self.model = deep_copy(model).to(self.world.device)
        self.teacher = None
        if teacher is not None and (settings.distill or features):
            self.teacher = deep_copy(teacher).to(self.world.device).requires_grad_(False)
        example = (next(iter(task.batches("search", 0, 1)))[0],)
        self.numerics = numerics_for(settings.precision, self.model, example)
        for network in [self.model, *([self.teacher] if self.teacher is not None else [])]:
            with self.numerics.applied(network):  # lays out the weights, before anything keeps them
                pass
        self._before = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.parameters = choose_parameters(self.model, settings)
        self.optimiser = build_optimiser(self.parameters, settings)
        self.average = MovingAverage(self.model, settings.ema) if settings.ema else None
        count = min(settings.samples or task.training_samples(), task.training_samples())
        self.order = SampleOrder(count, settings.batch, seed=settings.seed)
        self.steps = settings.count_steps(task.training_samples())
        self._called = self.world.prepared(self.model)
        self._best = deep_copy(self._result)
        self._step, self._spent, self._losses = 0, 0.0, _Mean()
        self.history: list[Check] = []
        self.best: Check | None = None
        self._stale = 0

    def run(
        self,
        *,
        checkpoint: Path | None = None,
        every_minutes: float = 5.0,
        listener: Callable[[TuneProgress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Tuned:
        """Train to the end, and return the best network.

        Args:
            checkpoint: File to go on from where it exists, and to keep; ``None`` for none.
            every_minutes: How often it is written.
            listener: Hears of every step.
            stop: Asked after every step whether to stop here; the checkpoint is then written.

        Raises:
            RunError: The checkpoint is damaged or another network's, or the loss is not finite.
            TaskError: The outputs are not what the task needs.
        """
        if checkpoint is not None and checkpoint.exists():
            self._restore(Checkpoint.read(checkpoint))
        clock = _Clock(self._spent)
        saved, stopped = time.monotonic(), False
        with _forked_random_state(self.world.device), self._teaching():
            if not self.history and self.settings.checks:
                self._check(clock)
            first, began = self._step, time.monotonic()
            while self._step < self.steps and not self._tired and not stopped:
                self._losses.add(self._train(self._step))
                self._step += 1
                if self._step in self._checkpoints():
                    self._check(clock)
                each = (time.monotonic() - began) / (self._step - first)
                listener(self._progress(each))
                stopped = self.world.agreed(stop())
                if time.monotonic() - saved >= 60 * every_minutes or stopped:
                    self._save(checkpoint, clock)
                    saved = time.monotonic()
        return Tuned(self._finished(), tuple(self.history), self.best, complete=not stopped)

    @property
    def _result(self) -> nn.Module:
        """The network that is scored and returned."""
        return self.model if self.average is None else self.average.model

    @property
    def _tired(self) -> bool:
        return self.settings.patience is not None and self._stale >= self.settings.patience

    def _checkpoints(self) -> set[int]:
        """Return after which steps the network is scored; the last is one of them."""
        checks = min(self.settings.checks, self.steps)
        return {round(self.steps * (n + 1) / checks) for n in range(checks)}

    def _train(self, step: int) -> float:
        """Take one step and return its loss."""
        settings, world = self.settings, self.world
        mine = self.order.positions(step)[world.rank :: world.size]
        rng = augmentation_rng(settings.seed, step, world.rank)
        inputs, targets = self.task.training_batch(mine, rng)
        inputs, targets = self.numerics.laid_out(inputs.to(world.device)), targets.to(world.device)
        torch.manual_seed(torch_seed(settings.seed, step, world.rank))
        self.model.train()
        if settings.statistics == "stored":
            keep_statistics(self.model)
        with self._explaining():
            loss = self._loss(inputs, targets, step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"the training loss is {value} at step {step + 1}; {_CALMER}")
        world.backward(loss)
        if settings.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate(step, self.steps)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, step)
        return value

    def _loss(self, inputs: Tensor, targets: Tensor, step: int) -> Tensor:
        settings, taught = self.settings, None
        if self.teacher is not None:
            with torch.no_grad(), self._autocast():
                taught = self.teacher(inputs)
        with self._autocast():
            outputs = self._called(inputs)
        own = self.task.sample_scores(outputs, targets)[0].mean()
        if self.teacher is None:
            return own
        answers, aims = (self.task.log_probabilities(each) for each in (outputs, taught))
        distilled = distillation_loss(answers, aims, settings.temperature)
        loss = (1 - settings.distill) * own + settings.distill * distilled
        weight = settings.features * max(0.0, 1 - 2 * step / self.steps)
        if self.features and weight:
            loss = loss + weight * feature_loss(self.features, self._seen, self._taught)
        return loss

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say where outputs that a task refuses come from, once the network has been trained."""
        try:
            yield
        except TaskError as error:
            if not self._step:
                raise
            raise RunError(f"after {self._step} steps: {error}; or {_CALMER}") from error

    def _autocast(self) -> torch.autocast:
        return self.numerics.autocast(self.world.device)

    @contextlib.contextmanager
    def _teaching(self) -> Iterator[None]:
        """Keep the teacher in evaluation mode, and note the features of both networks."""
        with contextlib.ExitStack() as stack:
            if self.teacher is not None:
                stack.enter_context(evaluation_mode(self.teacher))
                names = [feature.module for feature in self.features]
                self._seen = stack.enter_context(noted(self.model, names))
                self._taught = stack.enter_context(noted(self.teacher, names))
            yield

    def _check(self, clock: _Clock) -> None:
        """Score the network, and keep it where it is the best so far."""
        with self._explaining(), torch.no_grad(), self.numerics.applied(self._result):
            score: Score = self.task.evaluate(self._result, "search")
        score = self.world.agreed(score)
        check = Check(
            step=self._step,
            seconds=round(clock.seconds, 3),
            train_loss=self._losses.taken(),
            loss=score.loss,
            accuracy=score.accuracy,
        )
        self.history.append(check)
        self._stale += 1
        if self.best is None or check.better_than(self.best):
            self.best, self._stale = check, 0
            fill_network(self._best, network_tensors(self._result, ""), "")

    def _progress(self, seconds_each: float) -> TuneProgress:
        return TuneProgress(
            step=self._step,
            steps=self.steps,
            train_loss=self._losses.value,
            last=self.history[-1] if self.history else None,
            best=self.best,
            seconds_each=seconds_each,
            seconds_left=seconds_each * (self.steps - self._step),
        )

    def _finished(self) -> nn.Module:
        """Return the best network where it was scored, else the last one."""
        model = deep_copy(self._best if self.best is not None else self._result).eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._before[name])
        return model

    def _save(self, path: Path | None, clock: _Clock) -> None:
        if path is None or self.world.rank:
            return
        facts: dict[str, Any] = {
            "step": self._step,
            "steps": self.steps,
            "seconds": clock.seconds,
            "stale": self._stale,
            "losses": [self._losses.total, self._losses.count],
            "history": [check.plain() for check in self.history],
            "best": None if self.best is None else self.best.plain(),
        }
        tensors = {
            **network_tensors(self.model, "model"),
            **network_tensors(self._best, "best"),
            **optimiser_tensors(self.optimiser, self.parameters),
        }
        if self.average is not None:
            tensors |= network_tensors(self.average.model, "average")
        Checkpoint(facts, tensors).write(path)

    def _restore(self, stored: Checkpoint) -> None:
        facts = stored.facts
        if facts["steps"] != self.steps:
            raise RunError(
                f"the checkpoint is of a fine-tuning in {facts['steps']} steps, not {self.steps}; "
                "begin again with --restart"
            )
        fill_network(self.model, stored.tensors, "model")
        fill_network(self._best, stored.tensors, "best")
        if self.average is not None:
            fill_network(self.average.model, stored.tensors, "average")
        fill_optimiser(self.optimiser, self.parameters, stored.tensors)
        self._step, self._spent, self._stale = facts["step"], facts["seconds"], facts["stale"]
        self._losses = _Mean(*facts["losses"])
        self.history = [check_of(values) for values in facts["history"]]
        self.best = None if facts["best"] is None else check_of(facts["best"])


class _Mean:
    """A mean that forgets when it is taken."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count = total, count

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan

    def taken(self) -> float:
        value = self.value
        self.total, self.count = 0.0, 0
        return value


class _Clock:
    """Seconds since it was made, and those before."""

    def __init__(self, before: float) -> None:
        self._before, self._began = before, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began


@contextlib.contextmanager
def _forked_random_state(device: torch.device) -> Iterator[None]:
    """Put PyTorch's random state back afterwards: dropout reads it, and every step sets it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
