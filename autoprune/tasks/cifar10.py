"""CIFAR-10 from files you have: the standard binary files, or compressed arrays."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from pydantic import PositiveFloat, PositiveInt

from autoprune.errors import TaskError
from autoprune.tasks.augmentation import CropAndMirror
from autoprune.tasks.classification import ArraySamples, ClassificationTask
from autoprune.tasks.registry import TASKS
from autoprune.tasks.split_task import SEARCH_SAMPLES
from autoprune.tasks.splits import stratified_split

#: Share of the training images that is held out for the search.
SEARCH_FRACTION = 0.1

_CLASSES = 10
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_WAY_OUT = (
    "expected data_batch_1.bin ... data_batch_5.bin and test_batch.bin of the binary version "
    "(cifar-10-binary.tar.gz), or cifar10.npz"
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Labelled:
    """Images and their class indices."""

    pixels: UInt8[np.ndarray, "n 3 32 32"]
    targets: Int[np.ndarray, " n"]

    @classmethod
    def joined(cls, parts: Sequence[_Labelled]) -> _Labelled:
        """Return the images of all parts, in order."""
        pixels = np.concatenate([part.pixels for part in parts])
        return cls(pixels, np.concatenate([part.targets for part in parts]))

    def split(
        self,
        positions: Int[np.ndarray, " m"] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> ArraySamples:
        """Return the images at ``positions`` (``None``: all) with a normalisation of [0, 1].

        For training they are shifted by up to four pixels and mirrored, as it is customary.
        """
        chosen = slice(None) if positions is None else positions
        return ArraySamples(
            self.pixels[chosen],
            self.targets[chosen],
            mean=tuple(255 * value for value in mean),
            std=tuple(255 * value for value in std),
            augmentation=CropAndMirror(padding=4),
        )


@TASKS.register("cifar10")
def cifar10(
    target: str = "",
    *,
    batch: PositiveInt = 1,
    search_samples: PositiveInt = SEARCH_SAMPLES,
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.2470, 0.2435, 0.2616),
) -> ClassificationTask:
    """Return the task of CIFAR-10: 32x32 colour images in ten classes.

    A tenth of the training images is the search split. A network that was trained on all 50,000
    has seen them, so its accuracy there is too good; differences between its pruned versions
    still mean something, and the test images are untouched.

    Args:
        target: Folder that holds the binary files (or a ``cifar-10-batches-bin`` folder with
            them), or ``cifar10.npz`` and perhaps ``cifar10_more.npz``.
        batch: Deployment batch.
        search_samples: Most search images one evaluation uses.
        mean: Per channel (red, green, blue), of pixels in [0, 1]; the training set's own.
        std: Likewise, standard deviations.

    Raises:
        TaskError: Files are missing or malformed.
    """
    if not target:
        raise TaskError(f"the task 'cifar10' needs a folder: cifar10:FOLDER; {_WAY_OUT}")
    labelled, reported = _read(Path(target).expanduser())
    keys = [str(index) for index in range(len(labelled.targets))]
    shares = (1 - SEARCH_FRACTION, SEARCH_FRACTION)
    training, search = stratified_split(keys, labelled.targets, fractions=shares)
    return ClassificationTask(
        "cifar10",
        _CLASSES,
        training=labelled.split(training, mean, std),
        search=labelled.split(search, mean, std),
        test=reported.split(None, mean, std),
        batch=batch,
        search_samples=search_samples,
    )


def _read(folder: Path) -> tuple[_Labelled, _Labelled]:
    """Return the training and the test images with their classes from the files there are."""
    if not folder.is_dir():
        raise TaskError(f"there is no folder {folder}; {_WAY_OUT}")
    for place in (folder, folder / "cifar-10-batches-bin"):
        if (place / "test_batch.bin").is_file():
            return _from_binary(place)
    if (folder / "cifar10.npz").is_file():
        return _from_arrays(folder)
    pickles = [place for place in (folder, folder / "cifar-10-batches-py")
               if (place / "data_batch_1").is_file()]  # fmt: skip
    if pickles:
        raise TaskError(
            f"{pickles[0]} holds the Python version of CIFAR-10, which is pickles, and autoprune "
            f"reads none; {_WAY_OUT}"
        )
    raise TaskError(f"{folder} holds no CIFAR-10 that autoprune reads; {_WAY_OUT}")


def _from_binary(folder: Path) -> tuple[_Labelled, _Labelled]:
    """Return training and test images from the standard binary files."""
    files = sorted(folder.glob("data_batch_*.bin"))
    if not files:
        raise TaskError(f"{folder} holds test_batch.bin but no data_batch_*.bin; {_WAY_OUT}")
    return _Labelled.joined([_records(file) for file in files]), _records(folder / "test_batch.bin")


def _records(file: Path) -> _Labelled:
    """Return the images of one binary file: a label byte, then 3 planes of 32x32 bytes, each."""
    try:
        data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise TaskError(f"cannot read {file}: {error}") from error
    if not len(data) or len(data) % _RECORD:
        raise TaskError(
            f"{file} has {len(data)} bytes, which is no multiple of {_RECORD} "
            "(label and 32x32 pixels in three colours); download it again"
        )
    records = data.reshape(-1, _RECORD)
    pixels = np.ascontiguousarray(records[:, 1:]).reshape(-1, *_SHAPE)
    return _Labelled(pixels, _checked_labels(records[:, 0], file))


def _from_arrays(folder: Path) -> tuple[_Labelled, _Labelled]:
    """Return training and test images from ``cifar10.npz`` and, where present, the second file."""
    first, second = folder / "cifar10.npz", folder / "cifar10_more.npz"
    parts = [_filtered(first, "train")]
    if second.is_file():
        parts.append(_filtered(second, "train"))
    return _Labelled.joined(parts), _filtered(first, "test")


def _filtered(file: Path, split: str) -> _Labelled:
    """Return a split whose pixels are stored as differences along rows and to green."""
    try:
        # Opened here: numpy leaves a file open that turns out to be no archive.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            stored, labels = arrays[f"d_{split}"], arrays[f"y_{split}"]
    except KeyError as error:
        raise TaskError(f"{file} lacks an array: {error.args[0]}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TaskError(f"{file} is damaged or no .npz file ({error}); copy it again") from error
    if stored.dtype != np.uint8 or stored.shape != (len(labels), *_SHAPE):
        raise TaskError(
            f"{file}: d_{split} is {stored.dtype} of shape {stored.shape}, expected uint8 of "
            f"shape {(len(labels), *_SHAPE)}"
        )
    planes = np.cumsum(stored, axis=-1, dtype=np.uint8)
    green = planes[:, 0]
    pixels = np.stack([planes[:, 1] + green, green, planes[:, 2] + green], axis=1)
    return _Labelled(pixels, _checked_labels(labels, file))


def _checked_labels(labels: np.ndarray, file: Path) -> Int[np.ndarray, " n"]:
    """Return the labels as int64 if they are class indices."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise TaskError(f"{file}: labels are {labels.dtype} of shape {labels.shape}, not integers")
    if labels.min() < 0 or labels.max() >= _CLASSES:
        raise TaskError(
            f"{file}: labels run from {labels.min()} to {labels.max()}, expected 0 to 9; "
            "is this CIFAR-100?"
        )
    return labels.astype(np.int64)
