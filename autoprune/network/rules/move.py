"""Operators that only move data: the same move is made on the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autoprune.network.call import Call, normal_dim, rule
from autoprune.network.labels import Planes, align, collapse, collapse_all, equal_pieces, varying
from autoprune.network.rules.pointwise import meet, merge


@rule("clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous", "zeros_like", "ones_like")
def same(call: Call) -> Planes:
    """The labels stay as they are."""
    return call.planes_of(call.args[0])


@rule("new_zeros", "new_ones", "new_empty", "new_full", "empty_like", "rand_like", "randn_like")
def fresh(call: Call) -> Planes:
    """A new tensor that takes nothing but its type from the operand."""
    return ()


@rule("permute", "transpose", "t", "unsqueeze")
def reorder(call: Call) -> Planes:
    """Dimensions change places; a plane has them all, so the operator applies to it as it is."""
    return tuple(call.func(plane, *call.args[1:]) for plane in call.planes_of(call.args[0]))


@rule("squeeze")
def squeeze(call: Call) -> Planes:
    """Dimensions of size 1 go; the plane drops the same ones."""
    tensor, out = call.args[0], call.outputs[0]
    return _apply(call, tensor, out)


@rule("expand")
def expand(call: Call) -> Planes:
    """Repetition along size-1 dimensions; planes broadcast by themselves."""
    return tuple(align(plane, call.outputs[0].ndim) for plane in call.planes_of(call.args[0]))


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def view(call: Call) -> Planes:
    """Merging and splitting dimensions."""
    tensor, out = call.args[0], call.outputs[0]
    moved = []
    for plane in call.planes_of(tensor):
        after = collapse(_reshaped(plane, tensor, out))
        if len(varying(after)) > len(varying(plane)):
            call.coupling.split(after)
        moved.append(after)
    return collapse_all(moved)


@rule("split", "split_with_sizes", "unbind", "chunk", "unsafe_split", "unsafe_chunk")
def split(call: Call) -> list[Planes]:
    """Equal pieces are coupled index by index; whether unequal sizes follow, a trial cut tells."""
    tensor, pieces = call.args[0], call.outputs
    position = 1 if call.name == "unbind" else 2
    dim = normal_dim(call.arg(position, "dim", 0), tensor.ndim)
    sizes = [1] * len(pieces) if call.name == "unbind" else [p.shape[dim] for p in pieces]
    result: list[list[Tensor]] = [[] for _ in pieces]
    for plane in call.planes_of(tensor):
        parts = [plane] * len(pieces)
        if plane.shape[dim] > 1:
            parts = list(plane.split(sizes, dim))
            if len(set(sizes)) == 1:
                if sizes[0] == 1 and len(varying(plane)) == 1:
                    call.coupling.freeze(plane, "taken apart one by one")
                equal_pieces(call.coupling, parts, "split into equal pieces")
        if call.name == "unbind":
            parts = [part.squeeze(dim) for part in parts]
        for own, part in zip(result, parts, strict=True):
            own.append(part)
    return [collapse_all(own) for own in result]


@rule("select")
def select(call: Call) -> Planes:
    """One index of a dimension: all its indices are coupled, so that it keeps its place."""
    tensor = call.args[0]
    dim, index = normal_dim(call.args[1], tensor.ndim), call.args[2]
    planes = []
    for plane in call.planes_of(tensor):
        if plane.shape[dim] > 1:
            if len(varying(plane)) == 1:
                call.coupling.freeze(plane, "one channel is selected by its number")
            call.coupling.tie_along(plane, dim, "selected by number")
            planes.append(plane.select(dim, index))
        else:
            planes.append(plane.squeeze(dim))
    return collapse_all(planes)


@rule("slice")
def slice_(call: Call) -> Planes:
    """A range of a dimension; whether its bounds follow the width, a trial cut tells."""
    tensor, out = call.args[0], call.outputs[0]
    dim = normal_dim(call.arg(1, "dim", 0), tensor.ndim)
    planes = []
    for plane in call.planes_of(tensor):
        if plane.shape[dim] > 1 and out.shape[dim] != tensor.shape[dim]:
            if out.shape[dim] == 1 and len(varying(plane)) == 1:
                call.coupling.freeze(plane, "one channel is taken by its number")
            plane = call.func(plane, *call.args[1:], **call.kwargs)
        planes.append(plane)
    return collapse_all(planes)


@rule("cat", "concat")
def cat(call: Call) -> Planes:
    """Labels follow each other along the concatenated dimension and meet along the others."""
    tensors = [tensor for tensor in call.args[0] if tensor.numel() or tensor.ndim > 1]
    dim = normal_dim(call.arg(1, "dim", 0), call.outputs[0].ndim)
    across = [[p for p in call.planes_of(t) if p.shape[dim] == 1] for t in tensors]
    shapes = [(*t.shape[:dim], 1, *t.shape[dim + 1 :]) for t in tensors]
    kept = meet(call.coupling, shapes, across, "concatenated with a fixed tensor")
    along = [[p for p in call.planes_of(t) if p.shape[dim] > 1] for t in tensors]
    if not any(along):
        return kept
    others = {d for own in along for plane in own for d in varying(plane)} - {dim}
    parts = []
    for tensor, own in zip(tensors, along, strict=True):
        shape = [s if d == dim or d in others else 1 for d, s in enumerate(tensor.shape)]
        part = own[0].expand(shape) if own else torch.zeros(shape, dtype=torch.int64)
        parts.append(part)
    return merge([collapse_all([torch.cat(parts, dim)]), kept])


@rule("stack")
def stack(call: Call) -> Planes:
    """Index i of every stacked tensor is coupled; the new dimension carries no label."""
    tensors = call.args[0]
    dim = normal_dim(call.arg(1, "dim", 0), call.outputs[0].ndim)
    planes = [[plane.unsqueeze(dim) for plane in call.planes_of(t)] for t in tensors]
    shapes = [tuple(t.unsqueeze(dim).shape) for t in tensors]
    return meet(call.coupling, shapes, planes, "stacked with a fixed tensor")


@rule("constant_pad_nd")
def pad(call: Call) -> Planes:
    """Padded channel positions carry no atom; padded image positions change nothing."""
    tensor, widths = call.args[0], call.args[1]
    padded = {tensor.ndim - 1 - i // 2 for i, width in enumerate(widths) if width}
    planes = []
    for plane in call.planes_of(tensor):
        own = [0] * len(widths)
        for dim in padded & set(varying(plane)):
            first = 2 * (tensor.ndim - 1 - dim)
            own[first : first + 2] = widths[first : first + 2]
        planes.append(torch.constant_pad_nd(plane, own, 0))
    return tuple(planes)


@rule("roll", "flip")
def shift(call: Call) -> Planes:
    """Positions change places; a labelled dimension that is shifted keeps its order fixed."""
    tensor = call.args[0]
    named = call.arg(2, "dims") if call.name == "roll" else call.args[1]
    dims = {normal_dim(d, tensor.ndim) for d in named or range(tensor.ndim)}
    for plane in call.planes_of(tensor):
        if dims & set(varying(plane)):
            call.coupling.freeze(plane, f"moved by {call.name}")
    return call.planes_of(tensor)


@rule("index", "index_select", "gather", "repeat", "as_strided", "unfold")
def pick(call: Call) -> Planes:
    """Positions picked by number: dimensions whose labels vary keep all of theirs."""
    tensor, out = call.args[0], call.outputs[0]
    planes = call.planes_of(tensor)
    if call.name == "as_strided" and tuple(out.shape) == tuple(tensor.shape):
        return planes
    moved: list[Tensor] = []
    for plane in planes:
        full = plane.expand(tensor.shape)
        after = collapse_all([call.func(full, *call.args[1:], **call.kwargs)])
        if not after or not _same_labels(after[0], plane):
            call.coupling.freeze(plane, f"picked by number in {call.name}")
        moved.extend(after)
    return tuple(moved)


def _same_labels(after: Tensor, before: Tensor) -> bool:
    return torch.equal(after.reshape(-1), before.reshape(-1))


def _reshaped(plane: Tensor, tensor: Tensor, out: Tensor) -> Tensor:
    """Return ``plane`` under a view of ``tensor`` as ``out``; a leading batch stays untouched."""
    batch = bool(tensor.ndim and out.ndim and tensor.shape[0] == out.shape[0])
    if batch and plane.shape[0] == 1:
        return plane.expand(1, *tensor.shape[1:]).reshape(1, *out.shape[1:])
    return plane.expand(tensor.shape).reshape(out.shape)


def _apply(call: Call, tensor: Tensor, out: Tensor) -> Planes:
    shapes: Sequence[Tensor] = [_reshaped(plane, tensor, out) for plane in call.planes_of(tensor)]
    return collapse_all(shapes)
