"""The one interface a task implements, and the pieces that most tasks share."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar, final

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import TaskError

T = TypeVar("T")

#: The two splits a network may be scored on; the search never sees ``"test"``.
Split = Literal["search", "test"]


@dataclasses.dataclass(frozen=True)
class Score:
    """How good a network is on a split.

    Attributes:
        loss: Mean cross-entropy in nats per sample.
        accuracy: Fraction of samples whose largest output is the right class, in [0, 1].
        samples: Samples it was measured on.
        loss_stderr: Standard error of ``loss``: the standard deviation of the samples' losses over
            the square root of their number; NaN where it is not known.
    """

    loss: float
    accuracy: float
    samples: int
    loss_stderr: float = math.nan

    @classmethod
    def of(cls, losses: Float[Tensor, " n"], correct: Float[Tensor, " n"]) -> Score:
        """Return the score of samples.

        Args:
            losses: Of every sample, in nats.
            correct: Of every sample, the fraction of its answers that is right.

        Raises:
            TaskError: There are no samples.
        """
        count = len(losses)
        if not count:
            raise TaskError("cannot score a network on no samples; the split is empty")
        spread = float(losses.double().std()) if count > 1 else math.nan
        return cls(
            loss=float(losses.double().mean()),
            accuracy=float(correct.double().mean()),
            samples=count,
            loss_stderr=spread / math.sqrt(count),
        )


class Task(ABC):
    """Data in three disjoint splits (training, search, test) and a metric.

    The search sees only the training and search splits; the test split is evaluated once, for
    networks that are reported. A task must survive cloudpickle, because workers receive it.

    Attributes:
        name: Short name for reports.
    """

    name: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Files and folders that are read while networks are scored; workers must have them."""
        return ()

    @abstractmethod
    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one deployment batch, the model's positional arguments.

        Its first dimension is the batch that latency is predicted for.
        """

    @abstractmethod
    def calibration(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches of inputs and targets from the training split.

        Every call returns the same samples, and a smaller request returns a prefix of a larger.

        Args:
            samples: How many; a training split that has fewer is returned whole.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> Score:
        """Return the score of ``model`` in evaluation mode on ``split``."""


class SampledTask(Task):
    """A task whose samples can be scored one by one.

    What a network is worth can then be said on the first samples of a split, so that a search stops
    scoring a network that is clearly worse than another, and networks can be compared with the
    unpruned one by their output distributions. A sample has one loss and one fraction of right
    answers: an image with its class, a sequence with its tokens.
    """

    @abstractmethod
    def samples(self, split: Split) -> int:
        """Return how many samples a network is scored on."""

    @abstractmethod
    def batches(self, split: Split, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of samples ``start`` to ``stop``, always in the same order.

        The first samples should be like the others: of all classes, of all documents.
        """

    @abstractmethod
    def sample_scores(
        self, outputs: object, targets: Tensor
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return the loss in nats and the fraction of right answers of each sample of a batch.

        Args:
            outputs: What the network returned.
            targets: As :meth:`batches` gave them, on the device of the network.

        Raises:
            TaskError: The outputs are not what the task needs.
        """

    @abstractmethod
    def log_probabilities(self, outputs: object) -> Float[Tensor, "n *positions classes"]:
        """Return the logarithms of the network's output distributions.

        Args:
            outputs: What the network returned, and :meth:`sample_scores` accepted.
        """

    @final
    def evaluate(self, model: nn.Module, split: Split) -> Score:
        """Return the score of ``model`` on all samples of ``split``.

        Raises:
            TaskError: The outputs are not what the task needs.
        """
        batches = self.batches(split, 0, self.samples(split))
        return total_score(run_batches(model, batches, self.sample_scores))


class TrainingTask(SampledTask):
    """A task whose training split gives batches to train on.

    What :meth:`sample_scores` returns as loss is what is minimised, so it must have a gradient.
    """

    @abstractmethod
    def training_samples(self) -> int:
        """Return how many samples the training split has."""

    @abstractmethod
    def training_batch(
        self, positions: Int[np.ndarray, " n"], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of training samples, augmented as it suits the data.

        Args:
            positions: Which samples, each below :meth:`training_samples`.
            rng: All that is random in the augmentation comes from it.
        """


def needs_training(task: Task) -> TrainingTask:
    """Return ``task`` where it gives batches to train on.

    Raises:
        TaskError: It does not.
    """
    if not isinstance(task, TrainingTask):
        raise TaskError(
            f"the task {task.name!r} gives no batches to train on; derive it from "
            "autoprune.tasks.base.TrainingTask or autoprune.tasks.split_task.SplitTask, or train "
            "the network that autoprune.load returns in a loop of your own"
        )
    return task


def needs_samples(task: Task, purpose: str) -> SampledTask:
    """Return ``task`` where it scores sample by sample.

    Args:
        task: Any task.
        purpose: What needs that, as it stands in the message.

    Raises:
        TaskError: It does not.
    """
    if not isinstance(task, SampledTask):
        raise TaskError(
            f"{purpose} needs a task that scores sample by sample, and {task.name!r} does not; "
            "derive it from autoprune.tasks.base.SampledTask, or do without"
        )
    return task


def reference_inputs(inputs: Num[Tensor, "n ..."], batch: int) -> tuple[Tensor, ...]:
    """Return a deployment batch of exactly ``batch`` samples, repeating ``inputs`` if need be.

    >>> reference_inputs(torch.zeros(3, 1, 8, 8), 5)[0].shape
    torch.Size([5, 1, 8, 8])
    """
    return (inputs[torch.arange(batch) % len(inputs)],)


def classification_score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int | None = None,
) -> Score:
    """Return mean cross-entropy and top-1 accuracy of ``model``.

    The model runs in evaluation mode without gradients, on the device of its parameters; every
    module's mode is what it was afterwards.

    Args:
        model: Takes one batch of inputs, returns logits ``(n, classes)``.
        batches: Inputs, first dimension n, and class indices ``(n,)``.
        classes: Outputs the model must have; ``None`` asks for enough to hold the targets.

    Raises:
        TaskError: There are no samples, or the outputs are no finite logits for these classes.
    """
    return total_score(
        run_batches(
            model,
            batches,
            lambda outputs, targets: classification_scores(outputs, targets, classes=classes),
        )
    )


def classification_scores(
    outputs: object, targets: Int[Tensor, " n"], *, classes: int | None = None
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the cross-entropy of each sample, and 1 where the largest logit is the right one.

    Args:
        outputs: Should be logits ``(n, classes)``.
        targets: Class indices.
        classes: Outputs there must be; ``None`` asks for enough to hold the targets.

    Raises:
        TaskError: The outputs are no finite logits for these classes.
    """
    logits = _checked_logits(outputs, targets, classes)
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses, (logits.argmax(dim=1) == targets).float()


def run_batches(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    scored: Callable[[object, Tensor], T],
) -> list[T]:
    """Return ``scored(outputs, targets)`` of every batch.

    The model runs in evaluation mode without gradients, on the device of its parameters; every
    module's mode is what it was afterwards.

    Args:
        model: Takes one batch of inputs.
        batches: Inputs and targets.
        scored: Sees outputs and targets on the device of the model.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    # Not inference_mode: models that cache tables in forward would keep tensors that can never
    # be trained with afterwards.
    with evaluation_mode(model), torch.no_grad():
        return [scored(model(inputs.to(device)), targets.to(device)) for inputs, targets in batches]


def total_score(
    parts: Sequence[tuple[Float[Tensor, " _"], Float[Tensor, " _"]]],
) -> Score:
    """Return the score over batches of losses and fractions right, one number per sample.

    Raises:
        TaskError: There are no samples.
    """
    if not parts:
        raise TaskError("cannot score a network on no samples; the split is empty")
    losses, correct = (torch.cat(column) for column in zip(*parts, strict=True))
    return Score.of(losses, correct)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of ``model`` into evaluation mode, and back into its own on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _checked_logits(
    output: object, targets: Int[Tensor, " n"], classes: int | None
) -> Float[Tensor, "n classes"]:
    """Return ``output`` in float32 if it is finite logits for ``targets``."""
    if not isinstance(output, Tensor):
        raise TaskError(
            "classification needs a network that returns one tensor of logits, "
            f"but it returned {type(output).__name__}; wrap it in a module that picks the logits"
        )
    if output.ndim != 2 or len(output) != len(targets):
        raise TaskError(
            f"classification needs logits of shape ({len(targets)}, classes) for "
            f"{len(targets)} samples, but the network returned {tuple(output.shape)}"
        )
    needed = int(targets.max()) + 1 if classes is None else classes
    if output.shape[1] < needed or (classes is not None and output.shape[1] > classes):
        raise TaskError(
            f"the task has {needed} classes, but the network has {output.shape[1]} outputs; "
            "give a network with that many outputs, e.g. by a factory of your own"
        )
    if not torch.isfinite(output).all():
        raise TaskError(
            f"the network's outputs are not finite on a batch of {len(targets)} samples; "
            "check its weights and the task's normalisation"
        )
    return output.float()
