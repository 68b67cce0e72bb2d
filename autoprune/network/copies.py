"""Copies of modules that hold what they computed."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from autoprune.network.call import tensors_in

Module = TypeVar("Module", bound=nn.Module)


def deep_copy(model: Module) -> Module:
    """Return ``copy.deepcopy(model)``, also where a module keeps a result that has a gradient."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        detach_computed(vars(module), memo)
    return copy.deepcopy(model, memo)


def detach_computed(value: object, memo: dict[int, Any]) -> None:
    """Add copies of what PyTorch refuses to copy, results with a gradient, to deepcopy's memo."""
    for tensor in tensors_in(value):
        if not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
