"""Example inputs of any form, and how a model is called with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from autoprune.network.call import tensors_in

#: What a model is called with: positional arguments in a tuple, keyword arguments in a mapping.
Inputs = tuple[Any, ...] | Mapping[str, Any]


def normalised(inputs: Tensor | Inputs) -> Inputs:
    """Return inputs in one of the two forms; a lone tensor is the only positional argument."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Return what ``model`` returns on copies of ``inputs``, which stay as they are."""
    copies = _pytree.tree_map_only(Tensor, torch.clone, inputs)
    if isinstance(copies, Mapping):
        return model(**copies)
    return model(*copies)


def batch_size(inputs: Inputs) -> int:
    """Return the first extent of the first tensor, 1 where there is none."""
    first = next(iter(tensors_in(inputs)), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def shapes(inputs: Inputs) -> list[tuple[int, ...]]:
    """Return the shape of every tensor, in order."""
    return [tuple(tensor.shape) for tensor in tensors_in(inputs)]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, fused attention and recurrence written out, and back."""
    training = [module for module in model.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    # The public switch warns of Intel GPUs wherever there are none.
    one_dnn: bool = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(one_dnn and not recurrent)
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(one_dnn)
        for module in training:
            module.training = True
