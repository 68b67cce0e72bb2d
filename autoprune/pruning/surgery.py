"""Builds the smaller network: a new module tree with sliced tensors, the original untouched."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.network.groups import ParamSlice, kept_positions
from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.pruning.mend import mend
from autoprune.pruning.plan import PruningPlan

#: Attribute values that can be shared between the original and its copy.
_IMMUTABLE = (int, float, str, bool, bytes, complex, type(None), type, torch.dtype, torch.device)


class Surgeon:
    """Cuts candidates out of one network; what does not depend on the plan is done once.

    Example:
        >>> from autoprune.network.trace import trace
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> network = trace(model, (torch.zeros(1, 3, 8, 8),))
        >>> Surgeon(network).cut(PruningPlan({"0": (0, 5)}))[0]
        Conv2d(3, 2, kernel_size=(3, 3), stride=(1, 1))
    """

    def __init__(self, network: Network) -> None:
        """Index the places that each group cuts."""
        self.network = network
        self._slices: dict[str, list[tuple[str, ParamSlice]]] = {}
        for group in network.groups:
            for member in group.members:
                self._slices.setdefault(member.path, []).append((group.name, member))
        model = network.model
        named = [*model.named_parameters(), *model.named_buffers()]
        self._tensors = {name: tensor for name, tensor in named}

    def cut(self, plan: PruningPlan) -> nn.Module:
        """Return the pruned network; it shares nothing writable with the original.

        Raises:
            PruningError: The plan does not fit the network.
        """
        plan.check(self.network)
        return self._copy(plan, _index_select)

    def mask(self, plan: PruningPlan) -> nn.Module:
        """Return the network at full size with the parameters of everything cut set to zero.

        Raises:
            PruningError: The plan does not fit the network.
        """
        plan.check(self.network)
        return self._copy(PruningPlan(plan.kept), _zero_outside)

    def _copy(
        self, plan: PruningPlan, reduce: Callable[[Tensor, int, Tensor], Tensor]
    ) -> nn.Module:
        memo: dict[int, Any] = {}
        dropped = {id(self.network.model.get_submodule(name)) for name in plan.dropped}
        for number in dropped:
            memo[number] = nn.Identity()
        kept = {name: np.asarray(units, np.int64) for name, units in plan.kept.items()}
        positions: dict[tuple[int, bytes], Tensor] = {}
        for name, tensor in self._tensors.items():
            memo[id(tensor)] = self._sliced(name, tensor, kept, positions, reduce)
        return _clone(self.network.model, memo)

    def _sliced(
        self,
        name: str,
        tensor: Tensor,
        kept: dict[str, np.ndarray[Any, Any]],
        positions: dict[tuple[int, bytes], Tensor],
        reduce: Callable[[Tensor, int, Tensor], Tensor],
    ) -> Tensor:
        """Return a tensor of its own with the positions that stay."""
        by_dim: dict[int, list[tuple[ParamSlice, np.ndarray[Any, Any]]]] = {}
        for group, member in self._slices.get(name, ()):
            if group in kept:
                by_dim.setdefault(member.dim, []).append((member, kept[group]))
        is_parameter = isinstance(tensor, nn.Parameter)
        result = tensor.detach()
        if by_dim and (is_parameter or reduce is not _zero_outside):
            for dim, slices in by_dim.items():
                index = kept_positions(tensor.shape[dim], slices)
                key = (tensor.shape[dim], index.tobytes())
                if key not in positions:
                    positions[key] = torch.from_numpy(index).to(tensor.device)
                result = reduce(result, dim, positions[key])
        else:
            result = result.clone()
        if is_parameter:
            return nn.Parameter(result, requires_grad=tensor.requires_grad)
        return result


def prune(network: Network, plan: PruningPlan) -> nn.Module:
    """Return the pruned network; for many plans of one network keep a :class:`Surgeon`.

    Raises:
        PruningError: The plan does not fit the network.
    """
    return Surgeon(network).cut(plan)


def replay(model: nn.Module, inputs: tuple[Any, ...], plan: PruningPlan) -> nn.Module:
    """Return ``model``, a fresh copy of the original architecture, cut as ``plan`` says.

    Args:
        model: The unpruned architecture; it is left as it is.
        inputs: Example inputs of the shapes it was traced with.
        plan: A plan made on the same architecture.

    Raises:
        PruningError: The plan does not fit the architecture.
        TraceError: The model does not run on the inputs.
    """
    return prune(trace(model, inputs), plan)


def _index_select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor.index_select(dim, index)


def _zero_outside(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    result = torch.zeros_like(tensor)
    return result.index_copy_(dim, index, tensor.index_select(dim, index))


def _clone(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy of a module tree whose tensors and dropped modules come from ``memo``.

    Does what ``copy.deepcopy`` does, ten times faster where a module has nothing but numbers,
    tensors and submodules.
    """
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    if "__deepcopy__" in dir(type(module)):
        return copy.deepcopy(module, memo)
    twin = type(module).__new__(type(module))
    memo[id(module)] = twin
    for name, value in module.__dict__.items():
        twin.__dict__[name] = _clone_attribute(name, value, memo)
    mend(module, twin)
    return twin


def _clone_attribute(name: str, value: Any, memo: dict[int, Any]) -> Any:  # noqa: ANN401
    if isinstance(value, _IMMUTABLE):
        return value
    if name == "_modules":
        return {k: None if v is None else _clone(v, memo) for k, v in value.items()}
    if name in ("_parameters", "_buffers"):
        return {k: None if v is None else memo[id(v)] for k, v in value.items()}
    if isinstance(value, dict) and not value:
        return OrderedDict() if isinstance(value, OrderedDict) else type(value)()
    return copy.deepcopy(value, memo)
