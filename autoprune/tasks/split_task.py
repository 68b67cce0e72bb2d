"""Tasks whose three splits are stored samples; what differs is what a sample is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from autoprune.errors import TaskError
from autoprune.tasks.base import Split, TrainingTask, reference_inputs

#: Samples of the search split that one evaluation uses unless told otherwise.
SEARCH_SAMPLES = 2048


class Samples(ABC):
    """The samples of one split, in an order whose prefixes are like the whole."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files and folders that batches are read from."""
        return ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of samples ``start`` to ``stop``, sample by sample."""

    def augmented(
        self, positions: Int[np.ndarray, " n"], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of samples for training, here as they are.

        Args:
            positions: Which samples.
            rng: All that is random comes from it.
        """
        parts = [self.batch(place, place + 1) for place in positions.tolist()]
        inputs, targets = zip(*parts, strict=True)
        return torch.cat(inputs), torch.cat(targets)


class SplitTask(TrainingTask):
    """A task that reads batches from three splits.

    Attributes:
        name: Short name for reports.
        training: For calibration and fine-tuning.
        search: What the search scores candidates on.
        test: For reported networks only.
        batch: Deployment batch, the first dimension of the example inputs.
        search_samples: Most samples of the search split one evaluation uses.
        evaluation_batch: Samples that go through the network at once.
    """

    def __init__(
        self,
        name: str,
        *,
        training: Samples,
        search: Samples,
        test: Samples,
        batch: int,
        search_samples: int,
        evaluation_batch: int,
    ) -> None:
        """Store parameters, which are the attributes.

        Raises:
            TaskError: A split is empty, or a number is not positive.
        """
        self.name = name
        self.training, self.search, self.test = training, search, test
        self.batch = batch
        self.search_samples = search_samples
        self.evaluation_batch = evaluation_batch
        numbers = {
            "batch": batch,
            "search_samples": search_samples,
            "evaluation_batch": evaluation_batch,
            f"{name}'s training split": len(training),
            f"{name}'s search split": len(search),
            f"{name}'s test split": len(test),
        }
        wrong = [f"{key} = {value}" for key, value in numbers.items() if value < 1]
        if wrong:
            raise TaskError(f"the task {name!r} needs at least one of each: {', '.join(wrong)}")

    @property
    def files(self) -> tuple[Path, ...]:
        """Files and folders that batches are read from."""
        return (*self.training.files, *self.search.files, *self.test.files)

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return one deployment batch of training samples."""
        inputs, _ = self.training.batch(0, min(self.batch, len(self.training)))
        return reference_inputs(inputs, self.batch)

    def calibration(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """Return the first ``samples`` training samples, all of them where there are fewer.

        Raises:
            TaskError: ``samples`` is not positive.
        """
        if samples < 1:
            raise TaskError(f"calibration needs at least one sample, not {samples}")
        return list(self._batched(self.training, 0, min(samples, len(self.training))))

    def training_samples(self) -> int:
        """Return how many samples the training split has."""
        return len(self.training)

    def training_batch(
        self, positions: Int[np.ndarray, " n"], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of training samples, augmented as the split does it."""
        return self.training.augmented(positions, rng)

    def samples(self, split: Split) -> int:
        """Return how many samples a network is scored on."""
        return len(self.test) if split == "test" else min(self.search_samples, len(self.search))

    def batches(self, split: Split, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of samples ``start`` to ``stop``."""
        return self._batched(self.test if split == "test" else self.search, start, stop)

    def _batched(self, samples: Samples, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(start, stop, self.evaluation_batch):
            yield samples.batch(first, min(first + self.evaluation_batch, stop))
