"""The one interface a task implements, and the pieces that most tasks share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import TaskError

#: The two splits a network may be scored on; the search never sees ``"test"``.
Split = Literal["search", "test"]


@dataclasses.dataclass(frozen=True)
class Score:
    """How good a network is on a split.

    Attributes:
        loss: Mean cross-entropy in nats per sample.
        accuracy: Fraction of samples whose largest output is the right class, in [0, 1].
        samples: Samples it was measured on.
    """

    loss: float
    accuracy: float
    samples: int


class Task(ABC):
    """Data in three disjoint splits (training, search, test) and a metric.

    The search sees only the training and search splits; the test split is evaluated once, for
    networks that are reported. A task must survive cloudpickle, because workers receive it.

    Attributes:
        name: Short name for reports.
    """

    name: str

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


def reference_inputs(images: Float[Tensor, "n ..."], batch: int) -> tuple[Tensor, ...]:
    """Return a deployment batch of exactly ``batch`` samples, repeating ``images`` if need be.

    >>> reference_inputs(torch.zeros(3, 1, 8, 8), 5)[0].shape
    torch.Size([5, 1, 8, 8])
    """
    return (images[torch.arange(batch) % len(images)],)


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
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    loss, correct, samples = 0.0, 0, 0
    # Not inference_mode: models that cache tables in forward would keep tensors that can never
    # be trained with afterwards.
    with evaluation_mode(model), torch.no_grad():
        for inputs, targets in batches:
            logits = _checked_logits(model(inputs.to(device)), targets, classes)
            targets = targets.to(device)
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            correct += int((logits.argmax(dim=1) == targets).sum())
            samples += len(targets)
    if not samples:
        raise TaskError("cannot score a network on no samples; the split is empty")
    return Score(loss=loss / samples, accuracy=correct / samples, samples=samples)


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
