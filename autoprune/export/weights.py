"""A network's tensors as one safetensors file, shared ones written once."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from autoprune.errors import ExportError

#: The one key of the file's own metadata; safetensors would write several in random order.
METADATA_KEY = "autoprune"


def write_weights(model: nn.Module, path: Path, header: Mapping[str, Any]) -> None:
    """Write every parameter and buffer; of names that share one tensor only the first is written.

    Buffers that are no part of the state dict are written as well: they may have been cut, or hold
    what the architecture would draw anew.

    Args:
        model: The network.
        path: The file.
        header: What the metadata says beside which names are tied.

    Raises:
        ExportError: The network keeps state that is no tensor, or one without values.
    """
    state = {**model.state_dict(), **_beside_state(model)}
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise ExportError(
            f"{type(model).__name__} keeps state that is no tensor: {', '.join(odd[:5])}; "
            "a package holds tensors only"
        )
    empty = [name for name, value in state.items() if value.is_meta]
    if empty:
        raise ExportError(
            f"{type(model).__name__} has no values for {', '.join(empty[:5])}: it was made by "
            "shapes alone; prune the model with its weights"
        )
    tied = _tied(state)
    # Cloned, because parts of one storage (views) must lie apart in the file.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if name not in tied
    }
    metadata = {METADATA_KEY: json.dumps({**header, "tied": tied})}
    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except (ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ExportError(f"safetensors cannot write {type(model).__name__}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Raises:
        ExportError: It is no safetensors file.
    """
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ExportError(f"{path} is damaged: {error}") from error


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network the values and number types of a file.

    Args:
        model: A network of its own, changed in place.
        tensors: What :func:`read_weights` returned.

    Raises:
        ExportError: A name or shape does not fit, or names are tied in only one of the two.
    """
    beside = _beside_state(model)
    current = model.state_dict()
    state = {**current, **beside}
    tied = _tied(state)
    split = [
        alias
        for alias, name in tied.items()
        if alias in tensors and not (name in tensors and torch.equal(tensors[alias], tensors[name]))
    ]
    if split:
        raise ExportError(f"the architecture shares {', '.join(split)}, the file does not")
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        if name in tensors:
            own.data = own.data.to(tensors[name].dtype)
    complete = {alias: tensors[name] for alias, name in tied.items() if name in tensors}
    complete |= tensors
    lacking = beside.keys() - complete.keys()
    wrong = [name for name in beside.keys() - lacking if beside[name].shape != complete[name].shape]
    if lacking or wrong:
        raise ExportError(f"buffers that do not fit: {', '.join(sorted([*lacking, *wrong]))}")
    for name, buffer in beside.items():
        buffer.copy_(complete.pop(name))
    versioned = OrderedDict(complete)
    # Modules that once stored their tensors otherwise ask which version wrote these.
    versioned._metadata = current._metadata  # type: ignore[attr-defined] # torch keeps it there
    try:
        model.load_state_dict(versioned, strict=True)
    except RuntimeError as error:
        raise ExportError(str(error)[:1000]) from error


def _beside_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are no part of the state dict."""
    state = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name not in state}


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return every name whose tensor is exactly that of an earlier name, and that name."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if not tensor.numel():
            continue  # empty tensors all lie at address 0
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        earlier = first.setdefault(place, name)
        if earlier != name:
            tied[name] = earlier
    return tied
