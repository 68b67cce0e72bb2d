"""Pooling and resizing: positions change, channels do not."""

from __future__ import annotations

from autoprune.network.call import Call, rule
from autoprune.network.labels import Planes, varying


@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
    "upsample_linear1d",
    "upsample_trilinear3d",
    "upsample_nearest3d",
    "reflection_pad2d",
    "replication_pad2d",
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
