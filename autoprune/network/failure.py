"""Why a model did not run or gave nothing to work with, told in terms of the user's own code."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.network.call import tensors_in
from autoprune.network.inputs import Inputs

_TORCH = Path(torch.__file__).parent
_OURS = Path(__file__).parent.parent
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
#: A type checker stands between a function and whoever calls it.
_BETWEEN = tuple(_TORCH.parent / name for name in ("jaxtyping", "beartype"))


def failed(model: nn.Module, inputs: Inputs, error: Exception, module: str) -> str:
    """Return what went wrong, the model's own error first.

    Args:
        model: What was called.
        inputs: With what.
        error: What it raised.
        module: Path of the innermost module that was running, ``""`` for none.
    """
    place = [f"in module {module!r}"] if module else []
    line = _line(error)
    if line:
        place.append(f"at {line}")
    message = str(error).strip() or "no message"
    return (
        f"{type(error).__name__}: {message}{' (' + ' '.join(place) + ')' if place else ''}. "
        f"{type(model).__name__} does not run on {described(inputs)}: {_hint(model, inputs)}"
    )


def described(inputs: Inputs) -> str:
    """Return the number type, shape and device of every tensor, in order.

    >>> described((torch.zeros(1, 3), torch.zeros(2, dtype=torch.int64)))
    'inputs float32 (1, 3) and int64 (2,) on cpu'
    """
    tensors = list(tensors_in(inputs))
    if not tensors:
        return "inputs without a tensor"
    listed = [f"{_name(tensor.dtype)} {tuple(tensor.shape)}" for tensor in tensors]
    devices = " and ".join(sorted({str(tensor.device) for tensor in tensors}))
    return f"inputs {' and '.join(listed)} on {devices}"


def without_tensors(model: nn.Module, output: object) -> str:
    """Return what to say of a model whose output holds no tensor."""
    return (
        f"{type(model).__name__} returned {type(output).__name__}, in which there is no tensor; "
        "its forward must return tensors, or tuples, lists, dicts or dataclasses of them"
    )


def without_weights(model: nn.Module, inputs: Inputs) -> str:
    """Return what to say of a model whose forward pass used no parameter."""
    count = sum(1 for _ in model.parameters())
    return (
        f"{type(model).__name__} ran on {described(inputs)} without an operator on any of its "
        f"{count} parameters, so there is nothing to prune; check that its forward calls its layers"
        if count
        else f"{type(model).__name__} has no parameters, so there is nothing to prune"
    )


def _line(error: Exception) -> str:
    """Return file and line of the innermost frame of the user, else of a package but torch."""
    frames = [(frame.f_code.co_filename, n) for frame, n in traceback.walk_tb(error.__traceback__)]
    foreign = [
        (Path(file), number)
        for file, number in frames
        if not file.startswith("<") and not _inside(Path(file), _TORCH, _OURS, *_BETWEEN)
    ]
    own = [(file, number) for file, number in foreign if not _inside(file, *_INSTALLED)]
    if not foreign:
        return ""
    file, number = (own or foreign)[-1]
    return f"{file}:{number}"


def _inside(file: Path, *folders: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


def _hint(model: nn.Module, inputs: Inputs) -> str:
    """Return what is plainly wrong with the inputs, else what to look for."""
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # compiled code has none
        return "give example inputs that its forward takes"
    try:
        if isinstance(inputs, Mapping):
            signature.bind(**inputs)
        else:
            signature.bind(*inputs)
    except TypeError as error:
        return f"its forward takes {signature}: {error}"
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None:
        for tensor in tensors_in(inputs):
            fault = _misfit(tensor, weight)
            if fault:
                return fault
    return "give example inputs of the shapes and number types that its forward takes"


def _misfit(tensor: Tensor, weight: Tensor) -> str:
    if tensor.device != weight.device and not weight.is_meta:
        return f"its weights are on {weight.device}, an input is on {tensor.device}"
    if tensor.is_floating_point() and tensor.dtype != weight.dtype:
        return f"its weights are {_name(weight.dtype)}, an input is {_name(tensor.dtype)}"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
