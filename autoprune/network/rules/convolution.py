"""Convolutions: plain, grouped, depthwise, transposed, of any rank."""

from __future__ import annotations

from torch import Tensor

from autoprune.network.call import Call, rule
from autoprune.network.labels import Coupling, Planes, varying


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(call: Call) -> Planes:
    """Input channels meet the weight's input dimension, outputs take its output dimension."""
    image, weight, bias = call.args[0], call.args[1], call.args[2]
    transposed, groups = bool(call.arg(6, "transposed", False)), int(call.arg(8, "groups", 1))
    coupling = call.coupling
    weight_planes = {varying(plane): plane for plane in call.planes_of(weight)}
    rows, columns = weight_planes.get((0,)), weight_planes.get((1,))
    if transposed:
        rows, columns = columns, rows
    entering = _channels(call, image)
    leaving = rows.reshape(-1) if rows is not None else None
    taking = columns.reshape(-1) if columns is not None else None
    if transposed and groups > 1:
        call.freeze([image, weight], "a grouped transposed convolution")
        return ()
    if groups == 1:
        _meet(coupling, entering, taking, "reads a fixed tensor")
    elif groups == image.shape[1]:
        fan_out = weight.shape[0] // groups
        wide = entering.repeat_interleave(fan_out) if entering is not None else None
        _meet(coupling, wide, leaving, "reads a fixed tensor")
    else:
        _grouped(coupling, entering, taking, leaving, groups)
    if leaving is None:
        return ()
    coupling.claim(leaving)
    if isinstance(bias, Tensor):
        own = call.planes_of(bias)
        _meet(coupling, leaving, own[0] if own else None, "meets a fixed bias")
    return (leaving.reshape(1, -1, *[1] * (call.outputs[0].ndim - 2)),)


def _channels(call: Call, image: Tensor) -> Tensor | None:
    """Return the atoms of the channel dimension of an activation, ``None`` without labels."""
    channels = None
    for plane in call.planes_of(image):
        if varying(plane) == (1,):
            channels = plane.reshape(-1)
        else:
            call.coupling.freeze(plane, "labels vary over positions of a convolution's input")
    return channels


def _meet(coupling: Coupling, left: Tensor | None, right: Tensor | None, reason: str) -> None:
    """Couple two vectors; where only one carries labels it is frozen."""
    if left is not None and right is not None:
        coupling.couple(left.reshape(-1), right.reshape(-1), reason)
    elif left is not None or right is not None:
        known = left if left is not None else right
        assert known is not None
        coupling.freeze(known, reason)


def _grouped(
    coupling: Coupling,
    entering: Tensor | None,
    taking: Tensor | None,
    leaving: Tensor | None,
    groups: int,
) -> None:
    """Couple index j of every group, so that the groups stay equally wide."""
    reason = "reads a fixed tensor"
    if entering is not None:
        coupling.tie_along(entering.reshape(groups, -1), 0, reason)
        entering = entering.reshape(groups, -1)[0]
    _meet(coupling, entering, taking, reason)
    if leaving is not None:
        coupling.tie_along(leaving.reshape(groups, -1), 0, reason)
