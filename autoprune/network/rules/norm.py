"""Normalisations: their parameters follow the channel; some mix the channels they normalise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from autoprune.network.call import Call, rule
from autoprune.network.labels import Planes, varying
from autoprune.network.rules.pointwise import meet


@rule(
    "native_batch_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "batch_norm",
)
def batch_norm(call: Call) -> Planes:
    """Weight, bias and running statistics are coupled with dimension 1.

    With batch statistics (weight standardisation) everything but dimension 1 is mixed.
    """
    image = call.args[0]
    if "batch_norm" in call.name and any(arg is True for arg in call.args[5:6]):
        for plane in call.planes_of(image):
            if varying(plane) != (1,):
                call.coupling.mix(plane)
    affine = [tensor for tensor in call.args[1:5] if isinstance(tensor, Tensor)]
    return _with_parameters(call, image, affine, first_dim=1)


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Planes:
    """Weight and bias are coupled with the trailing dimensions, which are mixed."""
    image = call.args[0]
    first_dim = image.ndim - len(call.args[1])
    for plane in call.planes_of(image):
        if any(dim >= first_dim for dim in varying(plane)):
            call.coupling.mix(plane)
    affine = [tensor for tensor in call.args[2:4] if isinstance(tensor, Tensor)]
    return _with_parameters(call, image, affine, first_dim=first_dim)


@rule("native_group_norm")
def group_norm(call: Call) -> Planes:
    """Index j of every group is coupled; channels of one group are mixed."""
    image, groups = call.args[0], int(call.args[6])
    for plane in call.planes_of(image):
        if varying(plane) != (1,):
            call.coupling.freeze(plane, "labels vary over positions of a group norm's input")
            continue
        if groups < image.shape[1]:
            call.coupling.mix(plane)
        if 1 < groups < image.shape[1]:
            channels = plane.reshape(groups, -1)
            call.coupling.tie_along(channels, 0, "a group norm's group")
    affine = [tensor for tensor in call.args[1:3] if isinstance(tensor, Tensor)]
    return _with_parameters(call, image, affine, first_dim=1)


def _with_parameters(
    call: Call, image: Tensor, parameters: Sequence[Tensor], *, first_dim: int
) -> Planes:
    """Couple ``parameters``, whose dimensions start at ``first_dim`` of ``image``, with it."""
    shapes = [tuple(image.shape)]
    planes: list[Sequence[Tensor]] = [call.planes_of(image)]
    for tensor in parameters:
        trailing = image.ndim - first_dim - tensor.ndim
        shapes.append((1,) * first_dim + tuple(tensor.shape) + (1,) * trailing)
        planes.append(
            [
                plane.reshape((1,) * first_dim + tuple(plane.shape) + (1,) * trailing)
                for plane in call.planes_of(tensor)
            ]
        )
    return meet(call.coupling, shapes, planes, f"meets a fixed tensor in {call.name}")
