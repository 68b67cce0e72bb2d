"""Matrix products: contracted labels are coupled pairwise, the others pass through."""

from __future__ import annotations

from torch import Tensor

from autoprune.network.call import Call, rule
from autoprune.network.labels import Coupling, Planes, align, collapse, varying
from autoprune.network.rules.pointwise import meet, merge


@rule("mm", "bmm", "matmul")
def product(call: Call) -> Planes:
    """``left @ right`` with equal leading batch dimensions."""
    left, right = call.args[0], call.args[1]
    return _contract(call, left, right)


@rule("addmm", "baddbmm")
def biased_product(call: Call) -> Planes:
    """``bias + left @ right``."""
    bias, left, right = call.args[0], call.args[1], call.args[2]
    planes = _contract(call, left, right)
    shape = tuple(call.outputs[0].shape)
    bias_shape = (1,) * (len(shape) - bias.ndim) + tuple(bias.shape)
    own = [align(plane, len(shape)) for plane in call.planes_of(bias)]
    return meet(call.coupling, [shape, bias_shape], [planes, own], "meets a fixed bias")


def _contract(call: Call, left: Tensor, right: Tensor) -> Planes:
    """Couple over the last dimension of ``left`` and the last but one of ``right``."""
    ndim = left.ndim
    for plane in (*call.planes_of(left), *call.planes_of(right)):
        if min(varying(plane)) < ndim - 2:
            call.coupling.batch(plane)
    inner_left, inner_right = ndim - 1, ndim - 2
    if left.shape[-1] > 1 and not (call.is_filled(left) or call.is_filled(right)):
        couple_inner(
            call.coupling,
            [p.transpose(-1, -2) for p in call.planes_of(left) if inner_left in varying(p)],
            [p for p in call.planes_of(right) if inner_right in varying(p)],
        )
    passed_left = [summed_out(call.coupling, p, inner_left) for p in call.planes_of(left)]
    passed_right = [summed_out(call.coupling, p, inner_right) for p in call.planes_of(right)]
    batch = tuple(left.shape[:-2])
    shapes = [(*batch, left.shape[-2], 1), (*batch, 1, right.shape[-1])]
    rows, columns = merge([passed_left]), merge([passed_right])
    met = meet(
        call.coupling, shapes, [rows, columns], f"batched against a fixed tensor in {call.name}"
    )
    # Attention between channels: rows and columns both say which, for every head.
    both = [p for p in columns if _inside(p) and any(_inside(row) for row in rows)]
    return (*met, *(p for p in both if not any(p is kept for kept in met)))


def _inside(plane: Tensor) -> bool:
    """Return whether labels vary along a batch dimension and within its matrices as well."""
    dims = varying(plane)
    return min(dims) < plane.ndim - 2 <= max(dims)


def couple_inner(coupling: Coupling, left: list[Tensor], right: list[Tensor]) -> None:
    """Couple planes whose contracted dimension is brought to the last but one."""
    reason = "contracted with a fixed tensor"
    left, right = (outermost(coupling, planes) for planes in (left, right))
    for plane in left + right:
        others = right if any(plane is own for own in left) else left
        if _outer(plane):
            coupling.tie_along(plane, plane.ndim - 2, reason)
        if not others:
            coupling.freeze(plane, reason)
        for other in others:
            if _outer(plane) and not _outer(other):
                coupling.freeze(other, "shared by all rows of a wider tensor")
            elif _outer(plane) or not _outer(other):
                coupling.couple(plane, other, reason)


def outermost(coupling: Coupling, planes: list[Tensor]) -> list[Tensor]:
    """Return the plane with the longest runs; the others are frozen.

    Where heads and the width that all of them share became one dimension, heads go alone.
    """
    if len(planes) < 2:
        return planes
    ordered = sorted(planes, key=_first_run, reverse=True)
    for plane in ordered[1:]:
        coupling.freeze(plane, "shared by all rows of a wider tensor")
    return ordered[:1]


def _first_run(plane: Tensor) -> int:
    """Return how many positions have the label of the first one until another comes."""
    labels = plane.reshape(-1)
    return int((labels != labels[0]).int().argmax())


def _outer(plane: Tensor) -> bool:
    """Return whether labels vary along another dimension than the last but one."""
    return any(dim != plane.ndim - 2 for dim in varying(plane))


def summed_out(coupling: Coupling, plane: Tensor, dim: int) -> Tensor:
    """Return what remains of ``plane`` when ``dim`` is summed over."""
    if plane.shape[dim] > 1 and len(varying(plane)) > 1:
        coupling.tie_along(plane, dim, "summed over")
    return collapse(plane.narrow(dim, 0, 1))
