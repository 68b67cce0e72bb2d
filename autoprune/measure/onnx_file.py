"""Modules as ONNX files that are only timed, never delivered."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from autoprune.errors import MeasureError
from autoprune.export.batches import root_cause

#: Operators that TensorRT 8.2 (JetPack 4.6) and all later runtimes read, and the first version with
#: what fused attention is written as.
_WIDELY_READ, _WITH_ATTENTION = 13, 14


def onnx_bytes(module: nn.Module, inputs: tuple[Tensor, ...], *, opset: int | None = None) -> bytes:
    """Return a module as ONNX with fixed shapes.

    Through PyTorch's exporter that traces: ten times as fast as the one that
    :func:`autoprune.export.onnx.export_onnx` uses, and what it writes fuses to the same kernels.

    Args:
        module: In eval mode.
        inputs: What it is called with.
        opset: Version of the operators; ``None`` for one that old runtimes read.

    Raises:
        MeasureError: The module cannot be exported.
    """
    if opset is None:
        # Asked before, because the exporter prints the whole graph where an operator is missing.
        opset = _WITH_ATTENTION if _attends(module, inputs) else _WIDELY_READ
    try:
        return _exported(module, inputs, opset)
    except Exception as error:  # whatever the network's code makes it raise
        raise MeasureError(
            f"{type(module).__name__} cannot be exported to ONNX: {root_cause(error)}"
        ) from error


class _Attention(TorchFunctionMode):
    """Notes whether fused attention runs."""

    seen: bool = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return what the function returns."""
        self.seen = self.seen or func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _attends(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    mode = _Attention()
    with torch.no_grad(), mode:
        module(*inputs)
    return mode.seen


def _exported(module: nn.Module, inputs: tuple[Tensor, ...], opset: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            buffer,  # type: ignore[arg-type] # this exporter writes to buffers, too
            dynamo=False,
            opset_version=opset,
        )
    return buffer.getvalue()
