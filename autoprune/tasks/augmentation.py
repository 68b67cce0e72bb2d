"""How images are changed at random for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

#: Raw pixels ``(n, c, h, w)`` and a source of randomness to pixels of the same shape.
Augmentation = Callable[
    [Num[np.ndarray, "n c h w"], np.random.Generator], Num[np.ndarray, "n c h w"]
]

#: Parts of an image that are tried before its centre is taken.
TRIES = 10
#: Least share of an image's area that a random part has.
LEAST_AREA = 0.08
#: Most that a random part's sides differ by, as a ratio.
ASPECT = 4 / 3


@dataclasses.dataclass(frozen=True)
class CropAndMirror:
    """Shifts each image by a few pixels, and mirrors half of them.

    Attributes:
        padding: Most pixels that an image is shifted by along each axis; what comes in is 0.
        mirror: Whether left and right are exchanged in half of the images.
    """

    padding: int
    mirror: bool = True

    def __call__(
        self, pixels: Num[np.ndarray, "n c h w"], rng: np.random.Generator
    ) -> Num[np.ndarray, "n c h w"]:
        """Return the changed images.

        Args:
            pixels: Raw images; not changed.
            rng: Decides shifts and mirrors.
        """
        count, channels, height, width = pixels.shape
        down, right = rng.integers(0, 2 * self.padding + 1, (2, count, 1))
        columns = np.broadcast_to(np.arange(width), (count, width))
        if self.mirror:
            columns = np.where(rng.random((count, 1)) < 0.5, columns, columns[:, ::-1])
        edge = (self.padding, self.padding)
        changed: np.ndarray = np.pad(pixels, ((0, 0), (0, 0), edge, edge))[
            np.arange(count)[:, None, None, None],
            np.arange(channels)[:, None, None],
            (down + np.arange(height))[:, None, :, None],
            (right + columns)[:, None, None, :],
        ]
        return changed


def random_box(
    width: int, height: int, draws: Float[np.ndarray, "tries 4"]
) -> tuple[int, int, int, int]:
    """Return a random part of an image as left, top, right and bottom, all in pixels.

    Its area is between :data:`LEAST_AREA` and all of the image's and its sides differ by up to
    :data:`ASPECT` [Szegedy2015going]; where no try fits in the image, the largest such part in the
    middle is taken, as torchvision's ``RandomResizedCrop`` does.

    Args:
        width: Of the image in pixels.
        height: Of the image in pixels.
        draws: Uniform numbers in [0, 1), a row for each try.

    References:
        [Szegedy2015going] C. Szegedy et al. Going Deeper with Convolutions. CVPR 2015.
    """
    for area, shape, across, down in draws.tolist():
        pixels = (LEAST_AREA + (1 - LEAST_AREA) * area) * width * height
        aspect = ASPECT ** (2 * shape - 1)
        wide, high = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left = int(across * (width - wide + 1))
            top = int(down * (height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * ASPECT)), min(height, round(width * ASPECT))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
