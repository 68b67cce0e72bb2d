"""Images in one folder per class, the layout torchvision made customary."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from autoprune.errors import TaskError
from autoprune.tasks.augmentation import TRIES, random_box
from autoprune.tasks.classification import ClassificationTask, normalised
from autoprune.tasks.registry import TASKS
from autoprune.tasks.split_task import SEARCH_SAMPLES, Samples
from autoprune.tasks.splits import stratified_split

#: What counts as an image, by the end of its name.
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_THREADS = 4
_Share = Annotated[float, Field(gt=0, lt=0.5)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Listing:
    """The images below one folder.

    Attributes:
        classes: Names of the class folders, sorted; a class index counts in this order.
        paths: The images, sorted.
        targets: Class index per image.
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSamples(Samples):
    """Images that are decoded when they are asked for.

    Attributes:
        paths: The files.
        targets: Class index per file.
        resize: Length in pixels that the shorter side is resized to.
        size: Height and width in pixels of the centre that is cut out.
        mean: Per channel (red, green, blue), of pixels in [0, 1].
        std: Likewise.
        kept: How many of the first images stay in memory once decoded, for splits that are read
            over and over.
        mirror: Whether half of the images are mirrored for training.
    """

    paths: tuple[Path, ...]
    targets: Int[np.ndarray, " n"]
    resize: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    kept: int = 0
    mirror: bool = True

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def files(self) -> tuple[Path, ...]:
        """The first and the last image: a folder that is there but empty is no data."""
        return (self.paths[0], self.paths[-1]) if self.paths else ()

    def batch(self, start: int, stop: int) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Return the normalised images and the class indices of samples ``start`` to ``stop``.

        Raises:
            TaskError: Files cannot be read as images; they are named.
        """
        if stop <= self.kept:
            pixels = self._decoded[start:stop]
        else:
            pixels = self._decode(self.paths[start:stop])
        mean, std = (tuple(255 * value for value in values) for values in (self.mean, self.std))
        targets = torch.from_numpy(self.targets[start:stop].astype(np.int64))
        return normalised(pixels, mean, std), targets

    def augmented(
        self, positions: Int[np.ndarray, " m"], rng: np.random.Generator
    ) -> tuple[Float[Tensor, "m c h w"], Int[Tensor, " m"]]:
        """Return random parts of images, resized and half of them mirrored, and class indices.

        Raises:
            TaskError: Files cannot be read as images; they are named.
        """
        draws = rng.random((len(positions), TRIES, 4))
        mirrored = self.mirror & (rng.random(len(positions)) < 0.5)
        read = [
            functools.partial(_read, self.paths[place], _part(self.size, numbers, flip))
            for place, numbers, flip in zip(
                positions.tolist(), draws, mirrored.tolist(), strict=True
            )
        ]
        mean, std = (tuple(255 * value for value in values) for values in (self.mean, self.std))
        targets = torch.from_numpy(self.targets[positions].astype(np.int64))
        return normalised(_stacked(read), mean, std), targets

    @cached_property
    def _decoded(self) -> UInt8[np.ndarray, "kept 3 size size"]:
        return self._decode(self.paths[: self.kept])

    def _decode(self, paths: Sequence[Path]) -> UInt8[np.ndarray, "n 3 size size"]:
        return _stacked([functools.partial(read_image, p, self.resize, self.size) for p in paths])


@TASKS.register("image-folder")
def image_folder(
    target: str = "",
    *,
    batch: PositiveInt = 1,
    search_samples: PositiveInt = SEARCH_SAMPLES,
    size: PositiveInt = 224,
    resize: PositiveInt | None = None,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225),
    search_fraction: _Share = 0.1,
    test_fraction: _Share = 0.2,
    mirror: bool = True,
) -> ClassificationTask:
    """Return the task of telling apart the class folders of a folder.

    With ``train/`` and ``val/`` (or ``test/``) in it, training images are split into training and
    search, and the other folder is the test split; with all three, ``val/`` is the search split.
    Otherwise the class folders lie in it directly and all three splits are cut from them. Which
    image goes where depends on its path inside the folder alone.

    Args:
        target: The folder.
        batch: Deployment batch.
        search_samples: Most search images one evaluation uses; so many are kept in memory.
        size: Height and width in pixels of the network's input.
        resize: Length of the shorter side before the centre is cut out; ``size * 256 / 224`` where
            not given.
        mean: Per channel (red, green, blue), of pixels in [0, 1]; ImageNet's.
        std: Likewise, standard deviations.
        search_fraction: Share of the training images that becomes the search split.
        test_fraction: Share of all images that becomes the test split where there is no folder
            for it.
        mirror: Whether half of the images are mirrored for training; not where left and right
            differ, as in text.

    Raises:
        TaskError: The folder is missing or has another layout, or a size is wrong.
    """
    if not target:
        raise TaskError("the task 'image-folder' needs a folder: image-folder:FOLDER")
    shorter = round(size * 256 / 224) if resize is None else resize
    if shorter < size:
        raise TaskError(f"resize = {shorter} is smaller than the centre cut out, size = {size}")
    _require_pillow()
    listings = _splits(Path(target).expanduser().absolute(), search_fraction, test_fraction)
    training, search, test = (
        FolderSamples(
            listing.paths,
            listing.targets,
            resize=shorter,
            size=size,
            mean=mean,
            std=std,
            kept=kept,
            mirror=mirror,
        )
        for listing, kept in zip(
            listings, (0, min(search_samples, len(listings[1].paths)), 0), strict=True
        )
    )
    return ClassificationTask(
        "image-folder",
        len(listings[0].classes),
        training=training,
        search=search,
        test=test,
        batch=batch,
        search_samples=search_samples,
        evaluation_batch=64,
    )


def read_image(path: Path, resize: int, size: int) -> UInt8[np.ndarray, "3 size size"] | str:
    """Return the pixels (colour, row, column) of the image's centre, or why it cannot be read.

    The shorter side is resized to ``resize`` with antialiased bilinear interpolation, and the
    centre cut out, as torchvision's ``Resize`` and ``CenterCrop`` do.
    """
    from PIL import Image

    def centre(image: Any) -> Any:
        width, height = image.size
        if width <= height:
            width, height = resize, int(resize * height / width)
        else:
            width, height = int(resize * width / height), resize
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.crop((left, top, left + size, top + size))

    return _read(path, centre)


def _part(size: int, draws: Float[np.ndarray, "tries 4"], mirrored: bool) -> Callable[[Any], Any]:
    """Return what resizes a random part of an image to a square, and perhaps mirrors it."""
    from PIL import Image, ImageOps

    def part(image: Any) -> Any:
        width, height = image.size
        box = random_box(width, height, draws)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return ImageOps.mirror(image) if mirrored else image

    return part


def _read(path: Path, change: Callable[[Any], Any]) -> UInt8[np.ndarray, "3 h w"] | str:
    """Return the pixels of a changed image, or why the file cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        return f"{path} ({error})"
    return np.ascontiguousarray(np.asarray(change(image)).transpose(2, 0, 1))


def _stacked(
    readers: Sequence[Callable[[], np.ndarray | str]],
) -> UInt8[np.ndarray, "n 3 size size"]:
    """Return the pixels of several files, or raise with all that are unreadable."""
    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(lambda read: read(), readers))
    faults = [result for result in results if isinstance(result, str)]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise TaskError(
            f"{len(faults)} files cannot be read as images: {'; '.join(faults[:3])}{more}. "
            "Repair or remove them"
        )
    return np.stack([result for result in results if not isinstance(result, str)])


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise TaskError(
            "the task 'image-folder' needs pillow: pip install \"autoprune[vision]\""
        ) from error


def _splits(folder: Path, search_fraction: float, test_fraction: float) -> list[_Listing]:
    """Return the training, search and test images below ``folder``."""
    if not folder.is_dir():
        raise TaskError(f"there is no folder {folder}")
    train = folder / "train"
    others = [folder / name for name in ("val", "test") if (folder / name).is_dir()]
    if not train.is_dir():
        if others:
            raise TaskError(f"{folder} has {others[0].name}/ but no train/ beside it")
        rest = 1 - test_fraction
        shares = (rest * (1 - search_fraction), rest * search_fraction, test_fraction)
        return _divided(_listing(folder), folder, shares)
    if not others:
        raise TaskError(f"{folder} has train/ but neither val/ nor test/ beside it")
    training = _listing(train)
    held_out = [
        _divided(_listing(other, classes=training.classes), other, (1.0,))[0] for other in others
    ]
    own = (1.0,) if len(others) == 2 else (1 - search_fraction, search_fraction)
    return _divided(training, train, own) + held_out


def _listing(folder: Path, *, classes: tuple[str, ...] | None = None) -> _Listing:
    """Return the images in the class folders of ``folder``.

    Args:
        folder: Holds one folder per class.
        classes: Which classes there may be; ``None`` takes the folders' names.
    """
    names = sorted(
        place.name for place in folder.iterdir() if place.is_dir() and place.name[0] != "."
    )
    if classes is None:
        if len(names) < 2:
            raise TaskError(
                f"{folder} needs one folder of images per class, at least two, but has "
                f"{len(names)}: {', '.join(names) or 'none'}"
            )
        classes = tuple(names)
    strange = sorted(set(names) - set(classes))
    if strange:
        raise TaskError(f"{folder} has classes that train/ lacks: {', '.join(strange[:5])}")
    paths, targets = [], []
    for name in names:
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in EXTENSIONS and path.is_file() and path.name[0] != "."
        )
        if not found:
            raise TaskError(
                f"the class folder {folder / name} holds no images ({', '.join(EXTENSIONS)})"
            )
        paths += found
        targets += [classes.index(name)] * len(found)
    if not paths:
        raise TaskError(f"{folder} holds no class folders with images")
    return _Listing(classes, tuple(paths), np.array(targets, np.int64))


def _divided(listing: _Listing, root: Path, shares: Sequence[float]) -> list[_Listing]:
    """Return disjoint stratified parts, decided by the images' paths below ``root``."""
    keys = [path.relative_to(root).as_posix() for path in listing.paths]
    parts = stratified_split(keys, listing.targets, fractions=shares)
    smallest = min(len(part) for part in parts)
    if not smallest:
        raise TaskError(
            f"{root} has too few images ({len(keys)}) to give every split one; "
            "add images or make the splits' shares larger"
        )
    return [
        _Listing(
            listing.classes,
            tuple(listing.paths[position] for position in part),
            listing.targets[part],
        )
        for part in parts
    ]
