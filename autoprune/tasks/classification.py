"""The image classification task; what differs between data sets is where samples come from."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional as F

from autoprune.errors import TaskError
from autoprune.tasks.base import SampledTask, Split, classification_scores, reference_inputs

#: Samples of the search split that one evaluation uses unless told otherwise.
SEARCH_SAMPLES = 2048


class Samples(ABC):
    """The labelled images of one split."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def batch(self, start: int, stop: int) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Return the normalised images and the class indices of samples ``start`` to ``stop``."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySamples(Samples):
    """Samples held in memory; the arrays may be read-only (shared between processes).

    Attributes:
        pixels: Raw values.
        targets: Class indices.
        mean: Per channel, in the unit of ``pixels``; subtracted.
        std: Per channel, in the unit of ``pixels``; then divided by.
    """

    pixels: Num[np.ndarray, "n c h w"]
    targets: Int[np.ndarray, " n"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, start: int, stop: int) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Return the normalised images and the class indices of samples ``start`` to ``stop``."""
        return (
            normalised(self.pixels[start:stop], self.mean, self.std),
            torch.from_numpy(self.targets[start:stop].astype(np.int64)),
        )


class ClassificationTask(SampledTask):
    """Top-1 classification of images in three splits.

    Attributes:
        name: Short name for reports.
        classes: Number of classes.
        training: Labelled images for calibration and fine-tuning.
        search: Labelled images the search scores candidates on.
        test: Labelled images for reported networks only.
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
        """Store parameters.

        Args:
            name: Short name for reports.
            classes: Number of classes; networks must have as many outputs.
            training: Samples of the training split, in an order whose prefixes are stratified.
            search: Samples of the search split, ordered likewise.
            test: Samples of the test split.
            batch: Deployment batch, the first dimension of the example inputs.
            search_samples: Most samples of the search split one evaluation uses.
            evaluation_batch: Samples that go through the network at once.

        Raises:
            TaskError: A split is empty, or a number is not positive.
        """
        numbers = {
            "batch": batch,
            "search_samples": search_samples,
            "evaluation_batch": evaluation_batch,
        }
        sizes = {f"{name}'s {split} split": len(samples) for split, samples in
                 (("training", training), ("search", search), ("test", test))}  # fmt: skip
        wrong = [f"{key} = {value}" for key, value in {**numbers, **sizes}.items() if value < 1]
        if wrong:
            raise TaskError(f"the task {name!r} needs at least one of each: {', '.join(wrong)}")
        self.name = name
        self.classes = classes
        self.training, self.search, self.test = training, search, test
        self.batch = batch
        self.search_samples = search_samples
        self.evaluation_batch = evaluation_batch

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one deployment batch of training images."""
        images, _ = self.training.batch(0, min(self.batch, len(self.training)))
        return reference_inputs(images, self.batch)

    def calibration(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """Return the first ``samples`` training images, all of them where there are fewer.

        Raises:
            TaskError: ``samples`` is not positive.
        """
        if samples < 1:
            raise TaskError(f"calibration needs at least one sample, not {samples}")
        return list(self._batched(self.training, 0, min(samples, len(self.training))))

    def samples(self, split: Split) -> int:
        """Return how many images a network is scored on."""
        return len(self.test) if split == "test" else min(self.search_samples, len(self.search))

    def batches(self, split: Split, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and class indices of samples ``start`` to ``stop``."""
        return self._batched(self.test if split == "test" else self.search, start, stop)

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

    def _batched(self, samples: Samples, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(start, stop, self.evaluation_batch):
            yield samples.batch(first, min(first + self.evaluation_batch, stop))


def normalised(
    pixels: Num[np.ndarray, "n c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "n c h w"]:
    """Return ``(pixels - mean) / std`` per channel in float32; ``pixels`` may be read-only."""
    images = torch.from_numpy(pixels.astype(np.float32))
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return images.sub_(shift).div_(scale)
