"""The embedded task: scikit-learn's handwritten digits, nothing to download."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch.nn import functional as F

from autoprune.errors import TaskError
from autoprune.tasks.classification import ArraySamples, ClassificationTask
from autoprune.tasks.registry import TASKS
from autoprune.tasks.split_task import SEARCH_SAMPLES
from autoprune.tasks.splits import stratified_split

#: Shares of the training, search and test splits. The shipped weights were trained on the first.
FRACTIONS = (0.6, 0.2, 0.2)
#: Height and width of the images after resizing.
SIZE = 32
#: Mean and standard deviation of the training split's pixels, which are ink counts 0 to 16.
MEAN, STD = (4.875,), (6.004,)


@TASKS.register("digits")
def digits(
    target: str = "", *, batch: PositiveInt = 64, search_samples: PositiveInt = SEARCH_SAMPLES
) -> ClassificationTask:
    """Return the task of telling 1797 real handwritten digits apart (one channel, 32x32).

    The images are 8x8 ink counts, resized bilinearly. The same writers appear in all three
    splits (1078 training, 360 search, 359 test images), so the accuracy is about new digits of
    known writers.

    Args:
        target: Must be empty; the data are part of scikit-learn.
        batch: Deployment batch: a page of digits.
        search_samples: Most search images one evaluation uses.

    Raises:
        TaskError: A target came.
    """
    if target:
        raise TaskError(f"the task 'digits' takes nothing after its name, but got {target!r}")
    from sklearn.datasets import load_digits  # a second that other tasks need not wait

    data = load_digits()
    images = _resized(data.images)
    labels = data.target.astype(np.int64)
    keys = [str(index) for index in range(len(labels))]
    training, search, test = (
        ArraySamples(images[part], labels[part], mean=MEAN, std=STD)
        for part in stratified_split(keys, labels, fractions=FRACTIONS)
    )
    return ClassificationTask(
        "digits",
        10,
        training=training,
        search=search,
        test=test,
        batch=batch,
        search_samples=search_samples,
    )


def _resized(images: Float[np.ndarray, "n 8 8"]) -> Float[np.ndarray, "n 1 32 32"]:
    """Return the images at the networks' size, in float32 ink counts."""
    small = torch.from_numpy(images.astype(np.float32)).unsqueeze(1)
    return F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False).numpy()
