"""Pooling, resizing and sampling: positions change, channels do not or in whole blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autoprune.network.call import Call, rule
from autoprune.network.labels import Planes, varying


@rule(
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_unpool2d"),
    *("max_unpool3d", "fractional_max_pool2d", "fractional_max_pool3d"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
)
def resample(call: Call) -> Planes:
    """Labels that vary over batch and channel alone pass; others are frozen."""
    kept = []
    for plane in call.planes_of(call.args[0]):
        if any(dim >= 2 for dim in varying(plane)):
            call.coupling.freeze(plane, f"labels vary over the positions of {call.name}")
        else:
            kept.append(plane)
    return tuple(kept)


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler", "roi_align", "roi_pool")
def sample(call: Call) -> Planes:
    """Read at positions that another tensor gives; that one stays, and so do boxes."""
    image, places = call.args[0], call.args[1]
    call.freeze([places], f"positions that {call.name} reads")
    boxes = call.name.startswith("roi")
    kept = []
    for plane in call.planes_of(image):
        if varying(plane) == (1,) or (varying(plane) == (0,) and not boxes):
            kept.append(plane)
        else:
            call.coupling.freeze(plane, f"labels vary over the positions of {call.name}")
    return tuple(kept)


@rule("pixel_shuffle", "pixel_unshuffle")
def pixels(call: Call) -> Planes:
    """A square of positions and as many channels in a row are one unit."""
    image, square = call.args[0], int(call.args[1]) ** 2
    dim = image.ndim - 3
    if call.name == "pixel_unshuffle":
        return tuple(_repeated(plane, dim, square) for plane in _channels(call, image, dim))
    return tuple(_tied(call, plane, dim, square) for plane in _channels(call, image, dim))


@rule("im2col", "col2im")
def columns(call: Call) -> Planes:
    """The positions of a window become channels next to each other, or the other way round."""
    image, kernel = call.args[0], call.args[1 if call.name == "im2col" else 2]
    size, dim = math.prod(kernel), image.ndim - (3 if call.name == "im2col" else 2)
    planes = _channels(call, image, dim)
    if call.name == "im2col":
        return tuple(_repeated(plane, dim, size).squeeze(-1) for plane in planes)
    return tuple(_tied(call, plane, dim, size).unsqueeze(-1) for plane in planes)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Planes:
    """The channels of equal groups take turns; the groups stay equally wide."""
    image, groups = call.args[0], int(call.args[1])
    planes = []
    for plane in _channels(call, image, 1):
        if plane.shape[1] == 1:
            planes.append(plane)
        else:
            rows = plane.reshape(groups, -1)
            call.coupling.split(rows)
            planes.append(rows.T.reshape(plane.shape))
    return tuple(planes)


def _channels(call: Call, image: Tensor, dim: int) -> list[Tensor]:
    """Return the planes that vary at most along the batch and the channels, others frozen."""
    kept = []
    for plane in call.planes_of(image):
        if max(varying(plane)) > dim or len(varying(plane)) > 1:
            call.coupling.freeze(plane, f"labels vary over the positions of {call.name}")
        else:
            kept.append(plane)
    return kept


def _repeated(plane: Tensor, dim: int, count: int) -> Tensor:
    return torch.repeat_interleave(plane, count, dim) if plane.shape[dim] > 1 else plane


def _tied(call: Call, plane: Tensor, dim: int, count: int) -> Tensor:
    """Couple each run of ``count`` channels and return one label for each."""
    if plane.shape[dim] == 1:
        return plane
    rows = plane.reshape(-1, count)
    call.coupling.tie_along(rows, 1, f"one channel in {call.name}")
    return rows[:, 0].reshape([-1 if d == dim else 1 for d in range(plane.ndim)])
