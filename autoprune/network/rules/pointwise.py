"""Elementwise operators: operands that meet are coupled position by position."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from autoprune.network.call import Call, rule
from autoprune.network.labels import Coupling, Planes, align, varying


@rule("pointwise")
def pointwise(call: Call) -> Planes:
    """Couple all tensor operands with broadcasting."""
    return _elementwise(call)


def _elementwise(call: Call) -> Planes:
    ndim = call.outputs[0].ndim
    operands = [
        (tensor, call.planes_of(tensor))
        for tensor in call.tensors
        if tensor.ndim
        and (call.planes_of(tensor) or not (call.is_filled(tensor) or _repeated(call, tensor)))
    ]
    shapes = [(1,) * (ndim - tensor.ndim) + tuple(tensor.shape) for tensor, _ in operands]
    planes = [[align(plane, ndim) for plane in planes] for _, planes in operands]
    return meet(call.coupling, shapes, planes, f"meets a fixed tensor in {call.name}")


def _repeated(call: Call, tensor: Tensor) -> bool:
    """Return whether a tensor without labels shows the same to every label that it meets.

    A mask that was written out for every head: whether it is written out for fewer when heads go is
    for the trial cut to tell.
    """
    ndim = call.outputs[0].ndim
    value = tensor.reshape((1,) * (ndim - tensor.ndim) + tuple(tensor.shape))
    planes = [align(plane, ndim) for other in call.tensors for plane in call.planes_of(other)]
    meeting = [plane for plane in planes if any(value.shape[dim] > 1 for dim in varying(plane))]
    return bool(meeting) and all(_same_for_all(plane, value) for plane in meeting)


def _same_for_all(plane: Tensor, value: Tensor) -> bool:
    """Return whether the rows of ``value`` at one label are those at every other one, in order."""
    dims = varying(plane)
    if len(dims) > 1 or value.is_meta:
        return False
    labels, counts = plane.reshape(-1).unique(return_counts=True)
    if int(counts.min()) != int(counts.max()):
        return False
    rows = value.movedim(dims[0], 0)[plane.reshape(-1).argsort(stable=True)]
    rows = rows.reshape(len(labels), -1)
    return bool((rows == rows[:1]).all())


def meet(
    coupling: Coupling,
    shapes: Sequence[tuple[int, ...]],
    planes: Sequence[Sequence[Tensor]],
    reason: str,
) -> Planes:
    """Couple operands of equal rank that are combined elementwise and return the result's planes.

    Labels that meet a tensor without any are frozen, and go no further where others do: positions
    of a mask or of an embedding must not hide the channels that they are spread over.

    Args:
        coupling: Where the coupling is noted.
        shapes: Shape of each operand.
        planes: Planes of each operand, aligned to the common rank.
        reason: Why a label would be frozen that meets a tensor without one.
    """
    free: list[list[Tensor]] = [[] for _ in planes]
    for index, own in enumerate(planes):
        for plane in own:
            stays = False
            for other, shape in enumerate(shapes):
                if other != index:
                    partners = [p for p in planes[other] if not _shared_by(shapes[index], p)]
                    if partners or not planes[other]:
                        stays |= _meet_one(coupling, plane, shape, partners, reason)
            if not stays:
                free[index].append(plane)
    return merge(free) or merge(planes)


def _meet_one(
    coupling: Coupling,
    plane: Tensor,
    shape: tuple[int, ...],
    partners: Sequence[Tensor],
    reason: str,
) -> bool:
    """Couple ``plane`` with one other operand of ``shape`` that carries ``partners``.

    Returns:
        Whether it met nothing that it could be coupled with, and is frozen.
    """
    met = [dim for dim in varying(plane) if shape[dim] > 1]
    if not met:
        return False
    sharing = [partner for partner in partners if set(varying(partner)) & set(met)]
    if _shared_by(shape, plane):
        for dim in met:
            coupling.tie_along(plane, dim, reason)
        for partner in sharing:
            coupling.freeze(partner, "shared by all rows of a wider tensor")
    elif sharing:
        for partner in sharing:
            coupling.couple(plane, partner, None)
    else:
        coupling.freeze(plane, reason)
        return True
    return False


def _shared_by(shape: tuple[int, ...], plane: Tensor) -> bool:
    """Return whether an operand of ``shape`` repeats for every row of ``plane``.

    Its own positions then belong to no single row: a rotary frequency or a query norm that all
    heads use. It makes each row indivisible and goes with none of them.
    """
    dims = varying(plane)
    repeated = [dim for dim in dims if shape[dim] == 1]
    inner = [dim for dim in dims if shape[dim] > 1]
    return bool(repeated and inner and min(repeated) < max(inner))


def merge(planes: Sequence[Sequence[Tensor]]) -> Planes:
    """Return one plane per set of varying dimensions, the most varying of those that overlap."""
    candidates = sorted((p for own in planes for p in own), key=lambda p: -len(varying(p)))
    kept: list[Tensor] = []
    for plane in candidates:
        dims = set(varying(plane))
        if dims and not any(dims & set(varying(other)) for other in kept):
            kept.append(plane)
    return tuple(kept)


@rule("_prelu_kernel")
def prelu(call: Call) -> Planes:
    """The slope already has the input's rank; it is coupled like any other operand."""
    return _elementwise(call)


@rule("glu")
def gated(call: Call) -> Planes:
    """The second half of a dimension gates the first; index i of both is coupled."""
    tensor = call.args[0]
    dim = call.arg(1, "dim", -1) % tensor.ndim
    halves: list[list[Tensor]] = [[], []]
    for plane in call.planes_of(tensor):
        parts = plane.chunk(2, dim) if plane.shape[dim] > 1 else (plane, plane)
        for own, part in zip(halves, parts, strict=True):
            own.append(part)
    shape = tuple(call.outputs[0].shape)
    return meet(call.coupling, [shape, shape], halves, "gated by a fixed tensor")


@rule("linalg_cross")
def cross(call: Call) -> Planes:
    """Three coordinates are combined; the other dimensions are elementwise."""
    dim = int(call.arg(2, "dim", -1))
    for tensor in call.tensors:
        for plane in call.planes_of(tensor):
            if plane.shape[dim] > 1:
                call.coupling.freeze(plane, "a coordinate of a cross product")
    return _elementwise(call)
