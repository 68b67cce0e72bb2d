"""Number format and memory layout in which networks are scored."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from autoprune.errors import TaskError
from autoprune.network.inputs import Inputs, call_model
from autoprune.tasks.base import evaluation_mode

#: What may be asked for; ``"auto"`` is bfloat16 where the processor computes in it.
Precision = Literal["auto", "fp32", "bf16"]


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How networks run while they are scored.

    Attributes:
        precision: ``"bf16"`` runs convolutions and matrix products in bfloat16, as PyTorch's
            autocast chooses them; the rest and all scores are in float32.
        channels_last: Whether feature maps lie in memory position by position.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Lay out the weights of ``model``, which is changed, and compute in the precision."""
        if self.channels_last:
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    # Maps follow the layout of the weights that they are convolved with.
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        with self.autocast(_device_of(model)):
            yield

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context in which a device computes in the precision."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def laid_out(self, inputs: Tensor) -> Tensor:
        """Return inputs in the memory layout."""
        if self.channels_last and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def __str__(self) -> str:
        return f"{self.precision}{', channels last' if self.channels_last else ''}"


def numerics_for(precision: Precision, model: nn.Module, inputs: Inputs) -> Numerics:
    """Return the fastest way in which a network runs.

    Nothing is timed, so that a machine always chooses the same. A network whose code views feature
    maps as other shapes may need them contiguous, and one that mixes number formats may not run in
    two; such a network stays as it is.

    Args:
        precision: What was asked for.
        model: The unpruned network; not changed.
        inputs: Its example inputs.

    Raises:
        TaskError: bfloat16 was asked for, and the network does not run in it.
    """
    formats: tuple[Literal["fp32", "bf16"], ...] = ("bf16",) if precision == "bf16" else ("fp32",)
    device = _device_of(model)
    native = torch.cuda.is_bf16_supported if device.type == "cuda" else native_bfloat16
    if precision == "auto" and native():
        formats = ("bf16", "fp32")
    maps = any(parameter.ndim == 4 for parameter in model.parameters())
    layouts = (True, False) if maps else (False,)
    inputs = _pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
    ways = [Numerics(number, layout) for number in formats for layout in layouts]
    plain = Numerics()
    found = next((way for way in ways if way == plain or _runs(way, model, inputs)), None)
    if found is None:
        raise TaskError(
            "the network does not run in bfloat16 (or gives numbers that are not finite); "
            "take the precision 'fp32'"
        )
    return found


def native_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; others are slower in it than in float32."""
    # PyTorch has no public name for it.
    return bool(torch.cpu._is_avx512_bf16_supported())


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _runs(way: Numerics, model: nn.Module, inputs: Inputs) -> bool:
    tried = copy.deepcopy(model)
    try:
        with evaluation_mode(tried), torch.no_grad(), way.applied(tried):
            outputs = call_model(tried, inputs)
    except Exception:  # noqa: BLE001 - code of the user's: any error means that it does not run
        return False
    tensors = [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
