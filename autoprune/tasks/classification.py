"""The image classification task; what differs between data sets is where samples come from."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional as F

from autoprune.errors import TaskError
from autoprune.tasks.augmentation import Augmentation
from autoprune.tasks.base import classification_scores
from autoprune.tasks.split_task import SEARCH_SAMPLES, Samples, SplitTask


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySamples(Samples):
    """Samples held in memory; the arrays may be read-only (shared between processes).

    Attributes:
        pixels: Raw values.
        targets: Class indices.
        mean: Per channel, in the unit of ``pixels``; subtracted.
        std: Per channel, in the unit of ``pixels``; then divided by.
        augmentation: Changes raw pixels for training; ``None`` leaves them as they are.
    """

    pixels: Num[np.ndarray, "n c h w"]
    targets: Int[np.ndarray, " n"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, start: int, stop: int) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Return the normalised images and the class indices of samples ``start`` to ``stop``."""
        return (
            normalised(self.pixels[start:stop], self.mean, self.std),
            torch.from_numpy(self.targets[start:stop].astype(np.int64)),
        )

    def augmented(
        self, positions: Int[np.ndarray, " m"], rng: np.random.Generator
    ) -> tuple[Float[Tensor, "m c h w"], Int[Tensor, " m"]]:
        """Return images, augmented and then normalised, and class indices at ``positions``."""
        pixels = self.pixels[positions]
        if self.augmentation is not None:
            pixels = self.augmentation(pixels, rng)
        targets = torch.from_numpy(self.targets[positions].astype(np.int64))
        return normalised(pixels, self.mean, self.std), targets


class ClassificationTask(SplitTask):
    """Top-1 classification of images in three splits.

    A batch holds normalised images ``(n, c, h, w)`` and class indices ``(n,)``.

    Attributes:
        classes: Number of classes.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        *,
        training: Samples,
        search: Samples,
        test: Samples,
        batch: int = 1,
        search_samples: int = SEARCH_SAMPLES,
        evaluation_batch: int = 256,
    ) -> None:
        """Store parameters, which are the attributes of :class:`SplitTask`.

        Args:
            name: Short name for reports.
            classes: Number of classes; networks must have as many outputs.
            training: Samples of the training split, in an order whose prefixes are stratified.
            search: Samples of the search split, ordered likewise.
            test: Samples of the test split.
            batch: Deployment batch.
            search_samples: Most samples of the search split one evaluation uses.
            evaluation_batch: Samples that go through the network at once.

        Raises:
            TaskError: A split is empty, or a number is not positive.
        """
        super().__init__(
            name,
            training=training,
            search=search,
            test=test,
            batch=batch,
            search_samples=search_samples,
            evaluation_batch=evaluation_batch,
        )
        self.classes = classes

    def sample_scores(
        self, outputs: object, targets: Tensor
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return each image's cross-entropy, and 1 where the largest logit is the right one.

        Raises:
            TaskError: The outputs are no finite logits for the task's classes.
        """
        return classification_scores(outputs, targets, classes=self.classes)

    def log_probabilities(self, outputs: object) -> Float[Tensor, "n classes"]:
        """Return the logarithms of the classes' probabilities."""
        if not isinstance(outputs, Tensor):
            raise TaskError(f"expected a tensor of logits, got {type(outputs).__name__}")
        return F.log_softmax(outputs.float(), dim=1)


def normalised(
    pixels: Num[np.ndarray, "n c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n c h w"]:
    """Return ``(pixels - mean) / std`` per channel in float32; ``pixels`` may be read-only."""
    images = torch.from_numpy(pixels.astype(np.float32))
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return images.sub_(shift).div_(scale)
