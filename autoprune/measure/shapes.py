"""Single kernels to measure: their shape, the module that computes them, and their table row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor, nn

from autoprune.latency.layers import plain_name
from autoprune.network.ops import Op, OpTable

_ADDS = frozenset({"add", "eltwise"})
_PRODUCTS = ("linear", "matmul")


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """One operator with whole-number dimensions.

    For ``linear`` and ``matmul`` the rows are ``h``, the contracted features of all ``groups``
    (independent products) ``cin`` and the results ``cout``.

    Attributes:
        op: ``conv``, ``dwconv``, ``gconv``, ``linear``, ``matmul``, ``maxpool``, ``avgpool``,
            ``globalpool``, ``eltwise`` (a sum of two) or ``layernorm``.
        cin: Input channels.
        cout: Output channels.
        h: Input height.
        w: Input width.
        kernel: Window.
        stride: Stride of the window.
        groups: Groups of channels.
        batch: Images.
    """

    op: str
    cin: int
    cout: int
    h: int
    w: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1

    def columns(self) -> dict[str, Any]:
        """Return the cells of a kernel table that describe the shape; see ``docs/formats.md``."""
        if self.op in _PRODUCTS:
            dims = {"m": self.h, "n": self.cout // self.groups, "k": self.cin // self.groups}
            return {"op": self.op, "groups": self.groups, **dims}
        columns = dataclasses.asdict(self)
        del columns["batch"]
        return columns | {"kernel": _text(self.kernel), "stride": _text(self.stride)}

    @property
    def elements(self) -> int:
        """Elements of weights, inputs and outputs, about."""
        weights = self.cin * self.cout // self.groups * math.prod(self.kernel)
        return weights + self.batch * (self.cin + self.cout) * self.h * self.w

    def module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return a module that computes the kernel alone, and inputs for it."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            module, inputs = self._built()
        return module.eval(), inputs

    def _built(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        if self.op == "linear":
            return nn.Linear(self.cin, self.cout), (torch.randn(self.batch * self.h, self.cin),)
        if self.op == "matmul":
            products = self.batch * self.groups
            left = torch.randn(products, self.h, self.cin // self.groups)
            return _Product(), (
                left,
                torch.randn(products, left.shape[-1], self.cout // self.groups),
            )
        image = torch.randn(self.batch, self.cin, self.h, self.w)
        if self.op == "eltwise":
            return _Add(), (image, torch.randn_like(image))
        if self.op == "layernorm":
            return nn.LayerNorm(self.cin), (image.flatten(2).transpose(1, 2).contiguous(),)
        return self._sliding(), (image,)

    def _sliding(self) -> nn.Module:
        # As much as makes the output ceil(h / stride) rows, but for odd sizes and even windows.
        height, width = ((extent - 1) // 2 for extent in self.kernel)
        padding = (height, width)
        if self.op == "globalpool":
            return nn.AdaptiveAvgPool2d(1)
        if self.op == "maxpool":
            return nn.MaxPool2d(self.kernel, self.stride, padding)
        if self.op == "avgpool":
            return nn.AvgPool2d(self.kernel, self.stride, padding)
        return nn.Conv2d(self.cin, self.cout, self.kernel, self.stride, padding, groups=self.groups)


class _Add(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the sum."""
        return left + right


class _Product(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the matrix products."""
        return left @ right


def shape_of(op: Op, widths: Sequence[int] | Int[ndarray, " groups"]) -> KernelShape | None:
    """Return an operator's shape at some widths; ``None`` for one that is not measured alone.

    Args:
        op: An operator of a traced network.
        widths: Units per channel group.
    """
    word = _word(op)
    if word is None:
        return None
    cin, cout, groups = (dim.at(widths) for dim in (op.cin, op.cout, op.groups))
    if word == "conv" and groups > 1:
        word = "dwconv" if groups == cin == cout else "gconv"
    if word in _PRODUCTS:
        rows = math.prod(op.in_size)
        return KernelShape(word, cin, cout, rows, groups=groups, batch=op.batch)
    slides = word in ("conv", "dwconv", "gconv", "maxpool", "avgpool")
    kernel, stride = (op.kernel, op.stride) if slides else ((1, 1), (1, 1))
    return KernelShape(
        word, cin, cout, *op.in_size, kernel=kernel, stride=stride, groups=groups, batch=op.batch
    )


def measurable(table: OpTable) -> list[Op]:
    """Return the operators that can be measured alone."""
    return [op for op in table.ops if _word(op) is not None]


def _word(op: Op) -> str | None:
    """Return the operator's word in a kernel table, grouped convolutions like others."""
    name = plain_name(op.name)
    words = {"linear": "linear", "matmul": "matmul", "conv": None if op.transposed else "conv"}
    if op.kind in words:
        return words[op.kind]
    if op.kind == "pool":
        if op.out_size == (1, 1) and math.prod(op.in_size) > 1:
            return "globalpool"
        return "maxpool" if "max" in name else "avgpool"
    if op.kind == "pointwise" and name in _ADDS and len(op.inputs) == 2:
        return "eltwise"
    return "layernorm" if op.kind == "norm" and "layer_norm" in name else None


def _text(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
