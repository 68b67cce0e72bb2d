"""What one operator of the forward pass computed, noted while it runs and resolved afterwards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoprune.network.call import Call, is_pointwise
from autoprune.network.labels import Planes, varying
from autoprune.network.ops import Affine, Op

_KIND = {
    "convolution": "conv",
    "_convolution": "conv",
    "mm": "linear",
    "addmm": "linear",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "_grouped_mm": "linear",
    "grouped_mm_fallback": "linear",
    "native_batch_norm": "norm",
    "native_layer_norm": "norm",
    "native_group_norm": "norm",
    "cat": "cat",
    "stack": "cat",
}
_POOL = ("pool", "mean", "sum", "amax", "var")
_MOVES = (
    "clone",
    "constant_pad_nd",
    "index",
    "index_select",
    "roll",
    "flip",
    "repeat",
    "pixel_shuffle",
    "pixel_unshuffle",
    "embedding",
    "upsample",
    "softmax",
)


def kind_of(call: Call) -> str | None:
    """Return the op kind of a call, ``None`` for views and bookkeeping that cost nothing."""
    if call.name in _KIND:
        return _KIND[call.name]
    if any(part in call.name for part in _POOL):
        return "pool"
    if any(part in call.name for part in _MOVES):
        return "other"
    if is_pointwise(call.func):
        return "pointwise"
    return None


@dataclasses.dataclass(frozen=True)
class Width:
    """A dimension before its affine form is known.

    Attributes:
        size: Its extent in the traced pass.
        labels: Atom per index, ``None`` where nothing can be cut.
    """

    size: int
    labels: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """An :class:`~autoprune.network.ops.Op` whose widths are still labels."""

    kind: str
    name: str
    path: str
    inputs: tuple[int, ...]
    cin: Width
    cout: Width
    groups: Width
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    batch: int = 1
    transposed: bool = False

    def resolve(self, affine: Callable[[Width], Affine], block: int) -> Op:
        """Return the op with every width in affine form."""
        return Op(
            kind=self.kind,
            name=self.name,
            path=self.path,
            inputs=self.inputs,
            cin=affine(self.cin),
            cout=affine(self.cout),
            groups=affine(self.groups),
            kernel=self.kernel,
            stride=self.stride,
            in_size=self.in_size,
            out_size=self.out_size,
            batch=self.batch,
            block=block,
            transposed=self.transposed,
        )


def record(
    call: Call, kind: str, *, path: str, inputs: tuple[int, ...], out_planes: Planes, batch: int
) -> Record:
    """Return the record of a call.

    Args:
        call: The call.
        kind: Its kind, from :func:`kind_of`.
        path: Module path in which it ran.
        inputs: Indices of the records that produced its operands.
        out_planes: Planes of its first output.
        batch: Images of the traced forward pass.
    """
    name = f"aten.{call.name}"
    if kind == "conv":
        return _convolution(call, name, path, inputs, out_planes)
    if kind in ("linear", "matmul"):
        return _product(call, kind, name, path, inputs, batch)
    source, out = call.tensors[0], call.outputs[0]
    cin, in_size, _ = _channels(source, call.planes_of(source), batch)
    cout, out_size, batch_out = _channels(out, out_planes, batch)
    kernel, stride = _window(call) if kind == "pool" else ((1, 1), (1, 1))
    if kind in ("norm", "pointwise"):
        cin, in_size = cout, out_size
    return Record(
        kind, name, path, inputs, cin, cout, Width(1), kernel, stride, in_size, out_size, batch_out
    )


def _convolution(
    call: Call, name: str, path: str, inputs: tuple[int, ...], out_planes: Planes
) -> Record:
    image, weight, out = call.args[0], call.args[1], call.outputs[0]
    groups, transposed = int(call.arg(8, "groups", 1)), bool(call.arg(6, "transposed", False))
    entering = _vector(call.planes_of(image), image.shape[1])
    leaving = _vector(out_planes, out.shape[1])
    parts = entering if groups == image.shape[1] and groups > 1 else Width(groups)
    images = image.shape[0]
    rows = next((p.reshape(-1) for p in out_planes if varying(p) == (0,)), None)
    if rows is not None:
        # Heads that are convolved alike: each row is a group of its own in one wide convolution.
        entering, leaving, parts = (_for_each(rows, w.size) for w in (entering, leaving, parts))
        images = 1
    return Record(
        "conv",
        name,
        path,
        inputs,
        entering,
        leaving,
        parts,
        _pair(weight.shape[2:]),
        _pair(call.arg(3, "stride")),
        _pair(image.shape[2:]),
        _pair(out.shape[2:]),
        images,
        transposed,
    )


def _for_each(rows: Tensor, count: int) -> Width:
    """Return the width of ``count`` positions for each row."""
    return Width(len(rows) * count, rows.repeat_interleave(count))


def _product(
    call: Call, kind: str, name: str, path: str, inputs: tuple[int, ...], batch: int
) -> Record:
    left, right = call.args[1:3] if "add" in call.name else call.args[:2]
    of_left, of_right = call.planes_of(left), call.planes_of(right)
    if _labelled(of_left, left.ndim - 2) and not _labelled(of_right, right.ndim - 1):
        # A weight times positions: the same product turned around, whose rows are the positions.
        left, right = right.transpose(-1, -2), left.transpose(-1, -2)
        of_left, of_right = _turned(of_right), _turned(of_left)
    batches = math.prod(left.shape[:-2])
    rows = left.shape[-2]
    images = batch if batches == 1 and rows % batch == 0 else 1
    entering = _spread(of_left, left, drop=left.ndim - 2)
    if entering.labels is None and left.ndim == right.ndim == 2:
        # A recurrent layer's first state is made of one number; only the weight has a label.
        entering = _vector(of_right, right.shape[0], dim=0)
    # Rows grouped by expert meet one matrix of the stack each: the stack multiplies nothing.
    dropped = range(right.ndim - 1) if right.ndim > left.ndim else [right.ndim - 2]
    return Record(
        kind,
        name,
        path,
        inputs,
        entering,
        _spread(of_right, right, drop=dropped),
        _spread(of_left, left, drop=(left.ndim - 2, left.ndim - 1)),
        in_size=(rows // images, 1),
        out_size=(rows // images, 1),
        batch=images,
    )


def _labelled(planes: Planes, dim: int) -> bool:
    return any(dim in varying(plane) for plane in planes)


def _turned(planes: Planes) -> Planes:
    return tuple(plane.transpose(-1, -2) for plane in planes)


def _spread(planes: Planes, tensor: Tensor, drop: int | Sequence[int]) -> Width:
    """Return the labels over the dimensions of ``tensor`` that are not dropped, flattened.

    What is one unit along a dropped dimension (the features of a head) has its first label.
    """
    dropped = {drop} if isinstance(drop, int) else set(drop)
    shape = [1 if dim in dropped else size for dim, size in enumerate(tensor.shape)]
    firsts = [
        plane[tuple(slice(0, 1 if dim in dropped else None) for dim in range(plane.ndim))]
        for plane in planes
    ]
    fitting = max(firsts, key=lambda plane: len(varying(plane)), default=None)
    if fitting is None or not varying(fitting):
        return Width(math.prod(shape))
    return Width(math.prod(shape), fitting.expand(shape).reshape(-1))


def _vector(planes: Planes, size: int, dim: int = 1) -> Width:
    for plane in planes:
        if varying(plane) == (dim,):
            return Width(size, plane.reshape(-1))
    return Width(size)


def _channels(tensor: Tensor, planes: Planes, batch: int) -> tuple[Width, tuple[int, int], int]:
    """Return the channel width of an activation, its positions and its images."""
    images = batch if tensor.ndim and tensor.shape[0] == batch else 1
    numel = tensor.numel() // max(images, 1)
    if planes:
        labels = planes[0].reshape(-1)
        width = Width(len(labels), labels)
    elif tensor.ndim >= 3:
        width = Width(tensor.shape[1] if tensor.ndim > 3 else tensor.shape[-1])
    else:
        width = Width(tensor.shape[-1] if tensor.ndim else 1)
    positions = max(numel // max(width.size, 1), 1)
    if tensor.ndim == 4 and math.prod(tensor.shape[2:]) == positions:
        return width, (tensor.shape[2], tensor.shape[3]), images
    return width, (positions, 1), images


def _window(call: Call) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return kernel and stride of a pooling; a global one covers its whole input."""
    source, out = call.tensors[0], call.outputs[0]
    if call.name.startswith(("max_pool", "avg_pool")):
        kernel = call.args[1]
        return _pair(kernel), _pair(call.arg(2, "stride") or kernel)
    if source.ndim == 4 and out.ndim == 4:
        ratio = tuple(
            max(a // max(b, 1), 1) for a, b in zip(source.shape[2:], out.shape[2:], strict=True)
        )
        return _pair(ratio), _pair(ratio)
    whole = _pair(source.shape[2:]) if source.ndim == 4 else (1, 1)
    return whole, (1, 1)


def _pair(values: Sequence[int] | torch.Size) -> tuple[int, int]:
    """Return height and width; one dimension gets height 1, three fold the first two."""
    numbers = [int(value) for value in values]
    if len(numbers) == 1:
        numbers = (
            numbers * 2
            if isinstance(values, list) and not isinstance(values, torch.Size)
            else [1, *numbers]
        )
    if not numbers:
        return (1, 1)
    return math.prod(numbers[:-1]), numbers[-1]
