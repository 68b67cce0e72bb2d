"""Example inputs of any form, and how a model is called with them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from autoprune.network.call import tensors_in
from autoprune.network.fake import running

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
    """Return the first extent of the first tensor or the length of the first list of images.

    Detectors take images of different sizes as a list of tensors with three dimensions each. Where
    there is no tensor the batch is 1.
    """
    leaves = _pytree.tree_leaves(inputs, is_leaf=_is_image_list)
    for leaf in leaves:
        if _is_image_list(leaf):
            return len(leaf)
        first = next(iter(tensors_in(leaf)), None)
        if first is not None:
            return int(first.shape[0]) if first.ndim else 1
    return 1


def first_samples(inputs: Inputs, count: int) -> Inputs:
    """Return the first ``count`` samples of every tensor and list of images that has the batch."""
    batch = batch_size(inputs)

    def cut(leaf: Any) -> Any:
        fits = isinstance(leaf, Tensor) and leaf.shape[:1] == (batch,)
        return leaf[:count] if fits or (_is_image_list(leaf) and len(leaf) == batch) else leaf

    samples: Inputs = _pytree.tree_map(cut, inputs, is_leaf=_is_image_list)
    return samples


def _is_image_list(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(image, Tensor) and image.ndim == 3 for image in value)
    )


def shapes(inputs: Inputs) -> list[tuple[int, ...]]:
    """Return the shape of every tensor, in order."""
    return [tuple(tensor.shape) for tensor in tensors_in(inputs)]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, fused attention and recurrence written out, and back.

    What the model keeps of a pass (a table of positions, a counter) goes as well: a copy that is
    cut afterwards makes its own, as wide as it is.
    """
    put_back = _remembered(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    # The public switch warns of Intel GPUs wherever there are none.
    one_dnn: bool = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(one_dnn and not recurrent)
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), running(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(one_dnn)
        put_back()


def _remembered(model: nn.Module) -> Callable[[], None]:
    """Return a function that gives every module the attributes and buffers it has now."""
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    containers: list[tuple[Any, Any]] = [
        (value, copy.copy(value))
        for _, values in attributes
        for value in values.values()
        if isinstance(value, (dict, list, set))
    ]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def put_back() -> None:
        for live, values in attributes:
            live.clear()
            live.update(values)
        for container, content in containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(content)
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)

    return put_back
