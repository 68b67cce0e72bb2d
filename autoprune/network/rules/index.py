"""Positions picked by number: a dimension whose labels vary keeps all of its positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoprune.network.call import Call, for_labels, normal_dim, rule
from autoprune.network.labels import Planes, collapse, varying
from autoprune.network.rules.experts import looked_up
from autoprune.network.rules.pointwise import meet


@rule("index")
def index(call: Call) -> Planes:
    """``tensor[numbers]``: dimensions that no number names pass as they are."""
    tensor, numbers = call.args[0], _as_numbers(call.args[1])
    named = [dim for dim, number in enumerate(numbers) if number is not None]
    # Where every position has the same label only the rank of the numbers matters.
    first = [None if n is None else torch.zeros((1,) * n.ndim, dtype=torch.int64) for n in numbers]
    kept = []
    for plane in call.planes_of(tensor):
        if not set(named) & set(varying(plane)):
            kept.append(torch.ops.aten.index(plane, first))
        elif not looked_up(call, plane):
            shape = [tensor.shape[d] if d in named else n for d, n in enumerate(plane.shape)]
            numbers = for_labels(numbers)
            kept += _whole(call, plane, torch.ops.aten.index(plane.expand(shape), numbers))
    return tuple(kept)


@rule("index_select")
def index_select(call: Call) -> Planes:
    """Numbers along one dimension."""
    dim = normal_dim(call.args[1], call.args[0].ndim)
    kept = []
    for plane in call.planes_of(call.args[0]):
        if plane.shape[dim] == 1:
            kept.append(plane)
        elif not looked_up(call, plane):
            kept += _whole(call, plane, plane.index_select(dim, for_labels(call.args[2])))
    return tuple(kept)


@rule("gather")
def gather(call: Call) -> Planes:
    """Numbers of their own for every position of the other dimensions."""
    tensor, out = call.args[0], call.outputs[0]
    dim = normal_dim(call.args[1], tensor.ndim)
    kept = []
    for plane in call.planes_of(tensor):
        dims = varying(plane)
        if dim not in dims and all(out.shape[d] == tensor.shape[d] for d in dims):
            kept.append(plane)
        elif not looked_up(call, plane):
            call.coupling.freeze(plane, "picked by number in gather")
    return tuple(kept)


@rule("scatter", "scatter_reduce")
def scatter(call: Call) -> Planes:
    """Written by number along one dimension; the labels of the others meet."""
    target, dim = call.args[0], normal_dim(call.args[1], call.args[0].ndim)
    tensors = [tensor for tensor in (target, call.args[3]) if isinstance(tensor, Tensor)]
    operands = [tensor for tensor in tensors if not call.is_filled(tensor)]
    kept: list[list[Tensor]] = [[] for _ in operands]
    for own, tensor in zip(kept, operands, strict=True):
        for plane in call.planes_of(tensor):
            if plane.shape[dim] > 1:
                call.coupling.freeze(plane, f"written by number in {call.name}")
            else:
                own.append(plane)
    shapes = [tuple(tensor.shape) for tensor in operands]
    return meet(call.coupling, shapes, kept, f"meets a fixed tensor in {call.name}")


def _as_numbers(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return indices in which every mask has become the numbers of what it keeps."""
    numbers: list[Tensor | None] = []
    for tensor in indices:
        if tensor is None or tensor.dtype not in (torch.bool, torch.uint8):
            numbers.append(tensor)
        else:
            numbers.extend(tensor.nonzero(as_tuple=True))
    return numbers


def _whole(call: Call, before: Tensor, after: Tensor) -> list[Tensor]:
    """Return the labels of what was picked, frozen unless it is everything in its old order."""
    after = collapse(after)
    if torch.equal(after.reshape(-1), before.reshape(-1)):
        return [after]
    call.coupling.freeze(before, f"picked by number in {call.name}")
    return []
