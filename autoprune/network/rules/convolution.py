"""Convolutions: plain, grouped, depthwise, transposed, of any rank."""

from __future__ import annotations

from torch import Tensor

from autoprune.network.call import Call, rule
from autoprune.network.labels import Coupling, Planes, varying
from autoprune.network.rules.contract import outermost


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(call: Call) -> Planes:
    """Input channels meet the weight's input dimension, outputs take its output dimension."""
    image, weight, bias = call.args[0], call.args[1], call.args[2]
    transposed, groups = bool(call.arg(6, "transposed", False)), int(call.arg(8, "groups", 1))
    entering, rows = _entering(call, image)
    if rows is not None:
        parameters = [tensor for tensor in (weight, bias) if isinstance(tensor, Tensor)]
        call.freeze(parameters, "shared by all rows of a wider tensor")
        return (rows,)
    return _convolve(call, entering, (weight, bias), groups, transposed=transposed)


@rule("deform_conv2d")
def deformable(call: Call) -> Planes:
    """As a convolution; offsets and masks stay, one set for each of equal parts of the input."""
    image, weight, offset, mask, bias = call.args[:5]
    groups, parts = int(call.args[11]), int(call.args[12])
    call.freeze([offset, mask], "moves the positions of a deformable convolution")
    entering, rows = _entering(call, image)
    if rows is not None:
        call.freeze([image], "labels vary over the batch of a deformable convolution")
    if entering is not None and parts > 1:
        call.coupling.tie_along(entering.reshape(parts, -1), 0, "reads a fixed tensor")
    return _convolve(call, entering, (weight, bias), groups)


def _convolve(
    call: Call,
    entering: Tensor | None,
    parameters: tuple[Tensor, Tensor | None],
    groups: int,
    *,
    transposed: bool = False,
) -> Planes:
    """Couple what enters with weight and bias; return the planes of the output.

    Args:
        call: The convolution.
        entering: Atoms of the input's channels, ``None`` where they are fixed.
        parameters: Weight and bias.
        groups: Equal parts into which the channels are divided.
        transposed: Whether the weight's first dimension is the input's.
    """
    weight, bias = parameters
    coupling = call.coupling
    planes = {varying(plane): plane.reshape(-1) for plane in call.planes_of(weight)}
    first, second = planes.get((0,)), planes.get((1,))
    taking, leaving = (first, second) if transposed else (second, first)
    channels = call.args[0].shape[1]
    if groups == 1:
        _meet(coupling, entering, taking, "reads a fixed tensor")
    elif groups == channels:
        leaving = _depthwise(coupling, entering, (taking, leaving), weight, transposed=transposed)
    elif transposed:
        _meet(coupling, entering, taking, "reads a fixed tensor")
        if taking is not None:
            coupling.tie_along(taking.reshape(groups, -1), 0, "reads a fixed tensor")
        leaving = leaving.repeat(groups) if leaving is not None else None
    else:
        _grouped(coupling, entering, taking, leaving, groups)
    if leaving is None:
        return ()
    coupling.claim(leaving)
    if isinstance(bias, Tensor) and not call.is_filled(bias):
        own = call.planes_of(bias)
        _meet(coupling, leaving, own[0] if own else None, "meets a fixed bias")
    return (leaving.reshape(1, -1, *[1] * (call.outputs[0].ndim - 2)),)


def _entering(call: Call, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the atoms of an input's channels, or else the plane of its rows.

    Where labels vary over the batch (heads that are convolved alike) each row is one unit: all of
    them read the same weights.
    """
    planes = call.planes_of(image)
    own = outermost(call.coupling, [plane for plane in planes if varying(plane) == (1,)])
    channels, rows = own[0].reshape(-1) if own else None, None
    for plane in planes:
        dims = varying(plane)
        if dims == (1,):
            continue
        if max(dims) <= 1:
            call.coupling.tie_along(plane, 1, "convolved with what other rows share")
            rows = plane.narrow(1, 0, 1)
        else:
            call.coupling.freeze(plane, "labels vary over positions of a convolution's input")
    return channels, rows


def _depthwise(
    coupling: Coupling,
    entering: Tensor | None,
    weights: tuple[Tensor | None, Tensor | None],
    weight: Tensor,
    *,
    transposed: bool,
) -> Tensor | None:
    """Couple each channel with the outputs made of it alone; return the atoms of the outputs.

    Args:
        coupling: Where the coupling is noted.
        entering: Atoms of the input's channels.
        weights: Atoms of the weight's input and output dimension.
        weight: The weight.
        transposed: Whether its first dimension is the input's.
    """
    taking, leaving = weights
    reason = "reads a fixed tensor"
    if transposed:
        _meet(coupling, entering, taking, reason)
        if leaving is not None:
            coupling.freeze(leaving, "as many outputs for each channel")
        return taking.repeat_interleave(weight.shape[1]) if taking is not None else None
    fan_out = weight.shape[0] if entering is None else weight.shape[0] // len(entering)
    wide = entering.repeat_interleave(fan_out) if entering is not None else None
    _meet(coupling, wide, leaving, reason)
    return leaving


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
