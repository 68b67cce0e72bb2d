"""Layer lists: a network as plain JSON rows, for calibration tables and for other tools.

A list is ``[op, cin, cout, kernel, stride, groups, h_in, w_in, h_out, w_out]`` per layer in
execution order. Without more, each layer reads the one before it (a chain). An eleventh entry, a
list of row numbers, names the rows a layer reads; an empty one is the network's input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import ProfileError
from autoprune.network.ops import Affine, Op, OpTable

#: Words of a layer list that are not activations, and the operator kind they stand for.
WORDS = {
    "conv": "conv",
    "dwconv": "conv",
    "gconv": "conv",
    "deconv": "conv",
    "fc": "linear",
    "matmul": "matmul",
    "maxpool": "pool",
    "avgpool": "pool",
    "globalpool": "pool",
    "bn": "norm",
    "layernorm": "norm",
    "groupnorm": "norm",
    "cat": "cat",
    "view": "other",
    "copy": "other",
    "clone": "other",
    "softmax": "other",
}

_VIEW_NAMES = """
    alias as_strided broadcast_to chunk detach diagonal expand expand_as flatten movedim narrow
    numpy_T permute real reshape reshape_alias select slice split split_with_sizes squeeze swapaxes
    t transpose unbind unflatten unfold unsafe_chunk unsafe_split unsafe_view unsqueeze view view_as
"""

#: ATen operators that hand on memory without touching it.
VIEWS = frozenset(_VIEW_NAMES.split())


def plain_name(name: str) -> str:
    """Return an operator's name without namespace, overload and in-place mark.

    >>> plain_name("aten.relu_.default")
    'relu'
    >>> plain_name("aten._native_batch_norm_legit_no_training")
    'native_batch_norm_legit_no_training'
    """
    return name.removeprefix("aten.").removeprefix("aten::").split(".")[0].strip("_")


def is_batch_norm(op: Op) -> bool:
    """Return whether a normalisation is a per-channel affine map at inference."""
    name = plain_name(op.name)
    return op.kind == "norm" and (name == "bn" or "batch_norm" in name)


def is_view(op: Op) -> bool:
    """Return whether an operator moves no data."""
    return op.kind == "other" and plain_name(op.name) in VIEWS


def ops_from_rows(rows: Sequence[Sequence[Any]], *, network: str = "", batch: int = 1) -> OpTable:
    """Return the operators of one layer list.

    Args:
        rows: The layers, 10 or 11 entries each.
        network: The network's name, for messages and as the operators' path.
        batch: Images per forward pass.

    Raises:
        ProfileError: Rows are malformed; every fault is listed.
    """
    faults: list[str] = []
    ops: list[Op] = []
    for number, row in enumerate(rows):
        fault = _fault(row, number)
        if fault:
            faults.append(f"row {number}: {fault}")
        elif not faults:
            inputs = _inputs(rows, number)
            ops.append(_op(row, inputs, f"{network}.{number}" if network else str(number), batch))
    if faults:
        listing = "\n  ".join(faults)
        raise ProfileError(
            f"the layer list of {network!r} is malformed; expected [op, cin, cout, kernel, stride, "
            f"groups, h_in, w_in, h_out, w_out] and optionally the rows it reads:\n  {listing}"
        )
    return OpTable(tuple(ops), (), (), 0)


def rows_from_ops(table: OpTable) -> list[list[Any]]:
    """Return the layer list of a traced network at its full widths.

    Every row names the rows it reads, so adds, concatenations and branches survive.
    """
    widths = table.group_sizes
    return [
        [
            _word(op),
            op.cin.at(widths),
            op.cout.at(widths),
            op.kernel[0] if op.kernel[0] == op.kernel[1] else list(op.kernel),
            op.stride[0] if op.stride[0] == op.stride[1] else list(op.stride),
            op.groups.at(widths),
            *op.in_size,
            *op.out_size,
            list(op.inputs),
        ]
        for op in table.ops
    ]


def chain_faults(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return which rows of a well-formed layer list read something that no row before them wrote.

    A plain list does not say what a row reads. It is accepted where some earlier output fits: the
    same size with as many channels in all (a concatenation or a part of them), the same number of
    channels after a pooling to one position, or all elements of one output in a row.
    """
    faults: list[str] = []
    at_size: dict[tuple[int, int], int] = {}
    widths: set[int] = set()
    elements: set[int] = set()
    for number, row in enumerate(rows):
        channels, size = row[1], (row[6], row[7])
        if number == 0:
            at_size[size] = channels
            widths.add(channels)
        fits = (
            channels <= at_size.get(size, 0)
            or (size == (1, 1) and channels in widths)
            or channels in elements
        )
        if len(row) == 11:
            fits = _fits_named(rows, number)
        elif number and not fits:
            faults.append(
                f"row {number}: {row[0]} reads {channels} channels of {row[6]}x{row[7]}, which no "
                "row before it writes"
            )
        if len(row) == 11 and not fits:
            faults.append(
                f"row {number}: {row[0]} reads {channels} channels, row {row[10][0]} writes "
                f"{rows[row[10][0]][2]}"
            )
        written = (row[8], row[9])
        at_size[written] = at_size.get(written, 0) + row[2]
        widths.add(row[2])
        elements.add(row[2] * row[8] * row[9])
    return faults


def read_layers(paths: Sequence[str | Path]) -> dict[str, list[list[Any]]]:
    """Return the layer lists of JSON files, by network name; a later file wins.

    Raises:
        ProfileError: A file is missing, is no JSON, or is no object of lists.
    """
    layers: dict[str, list[list[Any]]] = {}
    for path in paths:
        content = {
            network: rows["layers"] if isinstance(rows, dict) and "layers" in rows else rows
            for network, rows in read_json(path).items()
        }
        if not all(isinstance(rows, list) for rows in content.values()):
            raise ProfileError(f"{path}: expected an object of network names with lists of rows")
        layers.update(content)
    return layers


def read_json(path: str | Path) -> Mapping[str, Any]:
    """Return the object a JSON file holds.

    Raises:
        ProfileError: The file is missing, is no JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}; give an existing file") from None
    except ValueError as error:
        raise ProfileError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _fault(row: Sequence[Any], number: int) -> str:
    """Return what is wrong with a row, ``""`` when nothing is."""
    if not isinstance(row, (list, tuple)) or len(row) not in (10, 11):
        return f"expected a list of 10 or 11 entries, got {row!r}"
    if not isinstance(row[0], str) or not row[0]:
        return f"the operator must be a word, got {row[0]!r}"
    for position in (3, 4):
        if not _is_pair(row[position]):
            return f"kernel and stride must be one or two positive integers, got {row[position]!r}"
    for value in (row[1], row[2], *row[5:10]):
        if not _is_count(value):
            return f"expected positive integers, got {value!r}"
    if row[1] % row[5] or (WORDS.get(row[0]) == "conv" and row[2] % row[5]):
        return f"{row[5]} groups divide neither {row[1]} nor {row[2]} channels evenly"
    if len(row) == 11 and not _are_earlier(row[10], number):
        return f"the rows it reads must be earlier row numbers, got {row[10]!r}"
    return ""


def _fits_named(rows: Sequence[Sequence[Any]], number: int) -> bool:
    """Return whether a row with one named input of known layout reads what that one writes."""
    row = rows[number]
    known = ("conv", "norm", "pool")
    if len(row[10]) != 1 or WORDS.get(row[0]) not in known:
        return True
    producer = rows[row[10][0]]
    same_size = tuple(producer[8:10]) == tuple(row[6:8])
    return WORDS.get(producer[0]) not in known or not same_size or producer[2] >= row[1]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_pair(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) == 2 and all(_is_count(v) for v in value)
    return _is_count(value)


def _are_earlier(inputs: object, number: int) -> bool:
    return isinstance(inputs, list) and all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < number for i in inputs
    )


def _inputs(rows: Sequence[Sequence[Any]], number: int) -> tuple[int, ...]:
    """Return the rows that row ``number`` reads.

    In a chain that is the row before; where that one's output does not fit, a branch starts and
    what it reads is unknown.
    """
    row = rows[number]
    if len(row) == 11:
        return tuple(row[10])
    before = rows[number - 1] if number else None
    fits = before is not None and before[2] == row[1] and tuple(before[8:10]) == tuple(row[6:8])
    return (number - 1,) if fits else ()


def _op(row: Sequence[Any], inputs: tuple[int, ...], path: str, batch: int) -> Op:
    word, cin, cout, kernel, stride, groups, h_in, w_in, h_out, w_out = row[:10]
    return Op(
        kind=WORDS.get(word, "pointwise"),
        name=word,
        path=path,
        inputs=inputs,
        cin=Affine(cin),
        cout=Affine(cout),
        groups=Affine(groups),
        kernel=_pair(kernel),
        stride=_pair(stride),
        in_size=(h_in, w_in),
        out_size=(h_out, w_out),
        batch=batch,
        transposed=word == "deconv",
    )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _word(op: Op) -> str:
    """Return the layer list's word for an operator; inverse of :data:`WORDS` as far as it goes."""
    name = plain_name(op.name)
    match op.kind:
        case "conv":
            return _conv_word(op)
        case "linear":
            return "fc"
        case "norm":
            return "bn" if is_batch_norm(op) else "layernorm"
        case "pool":
            return "maxpool" if "max" in name else "avgpool"
        case "other":
            return _other_word(op)
        case "pointwise":
            return name if name not in WORDS else f"{name}_"
        case kind:
            return kind


def _conv_word(op: Op) -> str:
    if op.transposed:
        return "deconv"
    if op.groups == Affine(1):
        return "conv"
    return "dwconv" if op.groups == op.cin == op.cout else "gconv"


def _other_word(op: Op) -> str:
    name = plain_name(op.name)
    if is_view(op):
        return "view"
    if name.endswith("softmax"):
        return "softmax"
    return name if WORDS.get(name) == "other" else "copy"
