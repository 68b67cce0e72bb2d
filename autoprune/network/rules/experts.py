"""Mixtures of experts: a router picks experts by number, tokens are grouped by what it picked.

The numbers that a router picks are followed (:func:`numbered`) from the operator that picks them to
where a stacked weight is indexed or grouped by them: there the router's rows and the slices of the
weight are the same experts. Whatever else reads the numbers (a loop over a list of modules that
compares them with its counter) freezes the router's rows; the experts' widths are no matter of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from autoprune.network.call import Call, normal_dim, rule
from autoprune.network.labels import Planes, varying
from autoprune.network.rules.contract import couple_inner, summed_out
from autoprune.network.rules.pointwise import meet, merge

#: Operators that put numbers elsewhere and leave their values as they are.
_KEEPS_VALUES = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "clone", "detach", "_to_copy", "unsqueeze", "squeeze"),
        *("expand", "permute", "transpose", "t", "slice", "select", "split", "unbind", "sort"),
        *("index", "index_select", "gather", "repeat"),
    }
)
#: Operators that read positions of their first operand by the numbers in another.
_LOOKS_UP = frozenset({"index", "index_select", "gather"})
#: Operators that pick positions by their values.
_PICKS = ("topk", "argmax")
#: Operators that count how often each number occurs.
COUNTS = ("histc", "bincount")


@rule(*_PICKS)
def pick(call: Call) -> list[Planes]:
    """Positions of a labelled dimension are picked by their values; what is picked has no label.

    During the traced pass the choice is spread over all positions, so that every expert runs and
    each gets an equal share of the tokens, whatever the weights and the example inputs are.
    """
    tensor = call.args[0]
    dim, count = _picks(call)
    if dim < 0:
        raise ValueError("one position is picked among those of all dimensions")
    kept = []
    for plane in call.planes_of(tensor):
        if plane.shape[dim] == 1:
            kept.append(plane if call.name == "topk" else _reduced(call, plane, dim))
        elif len(varying(plane)) > 1:
            call.coupling.freeze(plane, f"picked by number in {call.name}")
        else:
            call.coupling.pick(plane, count)
            _spread(call, dim)
    return [tuple(kept)] * len(call.outputs)


@rule(*COUNTS)
def count(call: Call) -> Planes:
    """How often each expert was picked: one count per expert, in the router's order."""
    numbers = call.numbers_of(call.args[0])
    if numbers is None or call.outputs[0].shape != (numbers.numel(),):
        call.freeze(call.tensors, f"counted by aten.{call.name}")
        return ()
    return (numbers.reshape(-1),)


@rule("_grouped_mm", "grouped_mm_fallback")
def grouped_product(call: Call) -> Planes:
    """Rows of ``left``, sorted by expert, times the matrix of their expert in ``right``."""
    left, right, ends = call.args[0], call.args[1], call.arg(2, "offs")
    if left.ndim != 2 or right.ndim != 3 or ends is None:
        raise ValueError("rows are grouped along another dimension than the first one's")
    columns, experts = call.planes_of(right), call.planes_of(ends)
    couple_inner(
        call.coupling,
        [plane.transpose(-1, -2) for plane in call.planes_of(left) if 1 in varying(plane)],
        [plane for plane in columns if 1 in varying(plane)],
    )
    _align(call, left, 1)
    _align(call, right, 2 if right.stride(-1) == 1 else 1)
    for plane in columns:
        if varying(plane) == (0,) and experts:
            call.coupling.follow(plane.reshape(-1), experts[0].reshape(-1))
        elif varying(plane) == (0,):
            call.coupling.freeze(plane, f"grouped by number in aten.{call.name}")
    rows = [plane for plane in call.planes_of(left) if varying(plane) == (0,)]
    passed = [
        summed_out(call.coupling, summed_out(call.coupling, plane, 1), 0).reshape(1, -1)
        for plane in columns
    ]
    return merge([rows, passed])


@rule("index_add", "index_put", "index_copy", "scatter_add")
def put(call: Call) -> Planes:
    """Rows are written or added at positions given by number; the other dimensions meet."""
    tensor, out = call.args[0], call.outputs[0]
    if call.name == "index_put":
        first, source = 0, call.args[2]
        written = sum(i.ndim if i.dtype == torch.bool else 1 for i in call.args[1] if i is not None)
        if any(index is None for index in call.args[1]):
            raise ValueError("a dimension in front of the indexed ones is written as a whole")
    else:
        first, source = normal_dim(call.args[1], out.ndim), call.args[3]
        written = 1
    named = set(range(first, first + written))
    behind = out.ndim - first - written
    lead = source.ndim - behind - first if source.ndim > behind else 0
    planes = [list(call.planes_of(tensor)), []]
    for plane in call.planes_of(source):
        if any(first <= dim < first + lead for dim in varying(plane)):
            call.coupling.freeze(plane, f"written by number in aten.{call.name}")
            continue
        shape = [*plane.shape[:first], *[1] * written, *plane.shape[first + lead :]]
        planes[1].append(plane.reshape(shape))
    for plane in planes[0]:
        if named & set(varying(plane)):
            call.coupling.freeze(plane, f"written by number in aten.{call.name}")
    shape = [1 if dim in named else size for dim, size in enumerate(out.shape)]
    kept = [[p for p in own if not named & set(varying(p))] for own in planes]
    operands = [own for t, own in zip((tensor, source), kept, strict=True) if not call.is_filled(t)]
    return meet(
        call.coupling,
        [tuple(shape)] * len(operands),
        operands,
        f"meets a fixed tensor in {call.name}",
    )


def numbered(call: Call) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield each result of a call whose values are experts' numbers, with the plane they number.

    Numbers that anything else reads than the operators that are understood freeze the plane.
    """
    if call.name in (*_PICKS, "max", "min"):
        dim = _picks(call)[0]
        for plane in call.planes_of(call.args[0]):
            if varying(plane) == (dim,):
                yield call.outputs[-1], plane
        return
    sources = [tensor for tensor in call.tensors if call.numbers_of(tensor) is not None]
    if not sources or call.name in COUNTS or _is_lookup(call):
        return
    numbers = call.numbers_of(call.tensors[0])
    if call.name not in _KEEPS_VALUES or len(sources) > 1 or numbers is None:
        call.freeze(sources, f"experts are told apart by number in aten.{call.name}")
        return
    for tensor in call.outputs[:1] if call.name == "sort" else call.outputs:
        yield tensor, numbers


def looked_up(call: Call, plane: Tensor) -> bool:
    """Return whether a plane is read by an expert's number, coupled with what numbers it."""
    found = [numbers for dim, numbers in _lookups(call) if varying(plane) == (dim,)]
    for numbers in found:
        call.coupling.follow(plane.reshape(-1), numbers.reshape(-1))
    return bool(found)


def _is_lookup(call: Call) -> bool:
    """Return whether all numbers of a call read along a dimension with labels of its own."""
    lookups = _lookups(call)
    planes = call.planes_of(call.args[0])
    return bool(lookups) and all(
        any(varying(plane) == (dim,) for plane in planes) for dim, _ in lookups
    )


def _lookups(call: Call) -> list[tuple[int, Tensor]]:
    """Return the dimensions of the first operand that are read by experts' numbers."""
    if call.name not in _LOOKS_UP:
        return []
    if call.name == "index":
        indices: Sequence[tuple[int, Tensor | None]] = list(enumerate(call.args[1]))
    else:
        indices = [(normal_dim(call.args[1], call.args[0].ndim), call.args[2])]
    pairs = [(dim, call.numbers_of(index)) for dim, index in indices if index is not None]
    return [(dim, numbers) for dim, numbers in pairs if numbers is not None]


def _picks(call: Call) -> tuple[int, int]:
    """Return the dimension along which positions are picked, -1 for all, and how many."""
    ndim = call.args[0].ndim
    if call.name == "topk":
        return normal_dim(call.arg(2, "dim", -1), ndim), int(call.args[1])
    dim = call.arg(1, "dim")
    return -1 if dim is None else normal_dim(dim, ndim), 1


def _align(call: Call, tensor: Tensor, dim: int) -> None:
    """Note that rows of ``dim`` begin at multiples of 16 bytes, which the kernels insist on."""
    for plane in call.planes_of(tensor):
        if dim in varying(plane):
            call.coupling.align(plane, max(16 // tensor.element_size(), 1))


def _reduced(call: Call, plane: Tensor, dim: int) -> Tensor:
    return plane if call.outputs[0].ndim == plane.ndim else plane.squeeze(dim)


def _spread(call: Call, dim: int) -> None:
    """Overwrite what was picked with numbers that go through all positions in turn.

    Where fewer are picked than there are positions, some stay idle: that is noted.
    """
    tensor, picked = call.args[0], call.outputs[-1]
    flat = call.name == "argmax" and picked.ndim < tensor.ndim
    whole = picked.unsqueeze(dim) if flat else picked
    last = whole.movedim(dim, -1)
    call.coupling.idle |= last.numel() < tensor.shape[dim]
    last.copy_((torch.arange(last.numel()) % tensor.shape[dim]).reshape(last.shape))
    if call.name == "topk":
        call.outputs[0].copy_(tensor.gather(dim, picked))
