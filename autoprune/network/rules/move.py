"""Operators that only move data: the same move is made on the labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from autoprune.network.call import Call, normal_dim, rule
from autoprune.network.labels import Planes, align, collapse, collapse_all, equal_pieces, varying
from autoprune.network.rules.pointwise import meet, merge


@rule(
    *("clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous", "_conj", "_neg_view"),
    *("resolve_conj", "resolve_neg", "zeros_like", "ones_like", "full_like", "empty_like"),
    *("rand_like", "randn_like", "bernoulli", "uniform", "normal", "random", "fill", "zero"),
)
def same(call: Call) -> Planes:
    """The labels stay as they are, whatever the numbers become."""
    return call.planes_of(call.args[0])


@rule("copy")
def copy(call: Call) -> Planes:
    """What is written over takes the labels of what is written; both are equally wide."""
    target, source = call.args[0], call.args[1]
    planes = [align(plane, target.ndim) for plane in call.planes_of(source)]
    if not planes and not call.is_filled(source) and source.ndim:
        call.freeze([target], "a fixed tensor is written into it")
    if not planes:
        return call.planes_of(target)
    own = call.planes_of(target)
    shapes = [tuple(target.shape), (1,) * (target.ndim - source.ndim) + tuple(source.shape)]
    return meet(call.coupling, shapes, [own, planes], "written over") if own else tuple(planes)


@rule("new_zeros", "new_ones", "new_empty", "new_full")
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
        after = collapse(_reshaped(plane, tensor.shape, out.shape))
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


@rule("flip")
def flip(call: Call) -> Planes:
    """Positions change places as they do in a cut tensor."""
    tensor = call.args[0]
    return tuple(plane.flip(call.args[1]) for plane in call.planes_of(tensor))


@rule("roll")
def roll(call: Call) -> Planes:
    """A labelled dimension that is shifted by a number of positions keeps its width."""
    tensor = call.args[0]
    dims = {normal_dim(d, tensor.ndim) for d in call.arg(2, "dims") or range(tensor.ndim)}
    for plane in call.planes_of(tensor):
        if dims & set(varying(plane)):
            call.coupling.freeze(plane, "moved by roll")
    return call.planes_of(tensor)


@rule("repeat")
def repeat(call: Call) -> Planes:
    """Labels are repeated as the positions are."""
    tensor, counts = call.args[0], call.args[1]
    planes = []
    for plane in call.planes_of(tensor):
        own = align(plane, len(counts))
        planes.append(own.repeat([n if own.shape[d] > 1 else 1 for d, n in enumerate(counts)]))
    return tuple(planes)


@rule("as_strided")
def as_strided(call: Call) -> Planes:
    """A view by strides that changes nothing passes; what any other does is not worked out."""
    tensor, out = call.args[0], call.outputs[0]
    if tuple(out.shape) == tuple(tensor.shape) and out.stride() == tensor.stride():
        return call.planes_of(tensor)
    call.freeze([tensor], "seen by strides")
    return ()


@rule("unfold")
def windows(call: Call) -> Planes:
    """Windows along a dimension without labels; the positions inside them are a new dimension."""
    tensor, dim = call.args[0], normal_dim(call.args[1], call.args[0].ndim)
    planes = []
    for plane in call.planes_of(tensor):
        if plane.shape[dim] > 1:
            call.coupling.freeze(plane, "cut into windows")
        else:
            planes.append(plane.unsqueeze(-1))
    return tuple(planes)


@rule("triu", "tril")
def triangle(call: Call) -> Planes:
    """Half a matrix is set to zero; what is on which side of the diagonal keeps its place."""
    tensor = call.args[0]
    for plane in call.planes_of(tensor):
        if set(varying(plane)) & {tensor.ndim - 1, tensor.ndim - 2}:
            call.coupling.freeze(plane, f"placed beside a diagonal by {call.name}")
    return call.planes_of(tensor)


@rule("view_as_real", "view_as_complex")
def parts(call: Call) -> Planes:
    """Real and imaginary part are a last dimension of their own, which stays."""
    planes = []
    for plane in call.planes_of(call.args[0]):
        if call.name == "view_as_real":
            planes.append(plane.unsqueeze(-1))
        elif plane.shape[-1] == 1:
            planes.append(plane.squeeze(-1))
        else:
            call.coupling.freeze(plane, "real and imaginary part belong together")
    return tuple(planes)


def _reshaped(plane: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return ``plane`` under a view from one shape to another.

    Only runs of dimensions along which the label varies are written out.
    """
    before, after = [], []
    for old, new in _runs(source, target):
        labelled = any(plane.shape[dim] > 1 for dim in old)
        before += [source[dim] if labelled else 1 for dim in old]
        after += [target[dim] if labelled else 1 for dim in new]
    return plane.expand(before).reshape(after)


def _runs(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield the shortest runs of dimensions of two shapes that hold the same elements.

    An extent of 0 counts as 1: no boxes still have channels.
    """
    old, new = ([max(size, 1) for size in shape] for shape in (source, target))
    if math.prod(old) != math.prod(new):
        raise ValueError(f"{tuple(source)} seen as {tuple(target)}")
    i = j = 0
    while i < len(old) or j < len(new):
        first, other = i, j
        i, j = i + 1, j + 1
        while (left := math.prod(old[first:i])) != (right := math.prod(new[other:j])):
            i, j = (i + 1, j) if left < right else (i, j + 1)
        yield range(first, min(i, len(old))), range(other, min(j, len(new)))


def _apply(call: Call, tensor: Tensor, out: Tensor) -> Planes:
    return collapse_all(_reshaped(p, tensor.shape, out.shape) for p in call.planes_of(tensor))
