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
        if tensor.ndim and not call.is_filled(tensor)
    ]
    shapes = [(1,) * (ndim - tensor.ndim) + tuple(tensor.shape) for tensor, _ in operands]
    planes = [[align(plane, ndim) for plane in planes] for _, planes in operands]
    return meet(call.coupling, shapes, planes, f"meets a fixed tensor in {call.name}")


def meet(
    coupling: Coupling,
    shapes: Sequence[tuple[int, ...]],
    planes: Sequence[Sequence[Tensor]],
    reason: str,
) -> Planes:
    """Couple operands of equal rank that are combined elementwise and return the result's planes.

    Args:
        coupling: Where the coupling is noted.
        shapes: Shape of each operand.
        planes: Planes of each operand, aligned to the common rank.
        reason: Why a label would be frozen that meets a tensor without one.
    """
    for index, own in enumerate(planes):
        for plane in own:
            for other, shape in enumerate(shapes):
                if other != index:
                    partners = [p for p in planes[other] if not _shared_by(shapes[index], p)]
                    if partners or not planes[other]:
                        _meet_one(coupling, plane, shape, partners, reason)
    return merge(planes)


def _meet_one(
    coupling: Coupling,
    plane: Tensor,
    shape: tuple[int, ...],
    partners: Sequence[Tensor],
    reason: str,
) -> None:
    """Couple ``plane`` with one other operand of ``shape`` that carries ``partners``."""
    met = [dim for dim in varying(plane) if shape[dim] > 1]
    if not met:
        return
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
