"""A task made up around any classifier, for tests that need scores and no data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.tasks.base import Score, Split, Task, classification_score, evaluation_mode
from autoprune.tasks.classification import ArraySamples, ClassificationTask

#: Samples of each split.
SAMPLES = 64


class TeacherTask(Task):
    """Random images, labelled by a network: that network is always right.

    Attributes:
        tested: How often the test split was used.
    """

    name = "teacher"

    def __init__(self, teacher: nn.Module, *, shape: tuple[int, ...], seed: int = 0) -> None:
        """Draw and label three splits.

        Args:
            teacher: The network whose largest output is the label.
            shape: Shape of a deployment batch.
            seed: Determines the images.
        """
        generator = torch.Generator().manual_seed(seed)
        self.batch = shape[0]
        self.images = torch.randn(3 * SAMPLES, *shape[1:], generator=generator)
        with evaluation_mode(teacher), torch.no_grad():
            self.labels = teacher(self.images).argmax(dim=1)
        self.tested = 0

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one deployment batch of training images."""
        return (self.images[: self.batch],)

    def calibration(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """Return the first training images."""
        part = slice(0, min(samples, SAMPLES))
        return [(self.images[part], self.labels[part])]

    def evaluate(self, model: nn.Module, split: Split) -> Score:
        """Return loss and accuracy on a split."""
        self.tested += split == "test"
        start = SAMPLES if split == "search" else 2 * SAMPLES
        part = slice(start, start + SAMPLES)
        return classification_score(model, [(self.images[part], self.labels[part])])


def taught_images(
    teacher: nn.Module, *, classes: int, shape: tuple[int, ...], samples: int = 256, seed: int = 0
) -> ClassificationTask:
    """Return a task with batches to train on, labelled by a network.

    Args:
        teacher: The network whose largest output is the label.
        classes: How many outputs it has.
        shape: Shape of a deployment batch.
        samples: Of each split.
        seed: Determines the images.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3 * samples, *shape[1:], generator=generator)
    with evaluation_mode(teacher), torch.no_grad():
        labels = teacher(images).argmax(dim=1).numpy()
    training, search, test = (
        ArraySamples(
            images[start : start + samples].numpy(),
            labels[start : start + samples],
            mean=(0.0,) * shape[1],
            std=(1.0,) * shape[1],
        )
        for start in range(0, 3 * samples, samples)
    )
    return ClassificationTask(
        "taught", classes, training=training, search=search, test=test, batch=shape[0]
    )
