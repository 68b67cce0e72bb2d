"""Builds the smaller network: a new module tree with sliced tensors, the original untouched."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from autoprune.network.copies import detach_computed
from autoprune.network.groups import ParamSlice, kept_positions
from autoprune.network.inputs import Inputs
from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.pruning.guards import guard
from autoprune.pruning.mend import Mender, mender, set_attribute
from autoprune.pruning.plan import PruningPlan

#: Types of attribute values that never change.
_IMMUTABLE = (int, float, str, bool, bytes, complex, type(None), type, torch.dtype, torch.device)


class Skip(nn.Identity):
    """Stands in for a dropped block: returns its first argument whatever else it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first argument, by position or else by name."""
        return args[0] if args else next(iter(kwargs.values()))


class Surgeon:
    """Cuts candidates out of one network; what does not depend on the plan is done once.

    Attributes of modules are taken as they are when the surgeon is made, tensors when it cuts.

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
        model = network.model
        named: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
        slices: dict[tuple[str, int], list[tuple[str, ParamSlice]]] = {}
        for group in network.groups:
            for member in group.members:
                slices.setdefault((member.path, member.dim), []).append((group.name, member))
        self._patterns: list[tuple[int, list[tuple[str, ParamSlice]]]] = []
        self._cuts: list[tuple[str, Tensor, bool, list[tuple[int, int]]]] = []
        known: dict[tuple[object, ...], int] = {}
        for name, tensor in named:
            dims = []
            for dim, size in enumerate(tensor.shape):
                members = slices.get((name, dim))
                if members:
                    key = (size, *((group, m.indices.tobytes()) for group, m in members))
                    if key not in known:
                        known[key] = len(self._patterns)
                        self._patterns.append((size, members))
                    dims.append((dim, known[key]))
            self._cuts.append((name, tensor, isinstance(tensor, nn.Parameter), dims))
        self._templates: dict[nn.Module, _Template] = {}

    def cut(
        self, plan: PruningPlan, *, replaced: Mapping[str, Tensor] = MappingProxyType({})
    ) -> nn.Module:
        """Return the pruned network; it shares nothing writable with the original.

        Args:
            plan: What stays.
            replaced: Tensors to cut instead of the original's, at full size, by the first name of
                the parameter or buffer.

        Raises:
            PruningError: The plan does not fit the network.
        """
        plan.check(self.network)
        plan = self.complete(plan)
        twin = self._copy(plan, zero=False, replaced=replaced)
        gone = tuple(f"{name}." for name in plan.dropped)
        for attribute, value in plan.attributes.items():
            if not attribute.startswith(gone):
                set_attribute(twin, attribute, value)
        removed = self._removed(plan)
        for path in self.guarded(plan):
            guard(twin.get_submodule(path), self.network.reshapes[path], removed)
        return twin

    def complete(self, plan: PruningPlan) -> PruningPlan:
        """Return the plan with what must follow its widths; what it has already stays."""
        values: dict[str, int] = {}
        removed = self._removed(plan)
        for group in self.network.groups:
            for mirror in group.mirrors if removed[group.name] else ():
                before = values.get(mirror.attribute, mirror.value)
                values[mirror.attribute] = before - mirror.per_unit * removed[group.name]
        guards = plan.guards or (self.network.guards if any(removed.values()) else ())
        return dataclasses.replace(plan, attributes=values | plan.attributes, guards=guards)

    def _removed(self, plan: PruningPlan) -> dict[str, int]:
        """Return how many units of each group go."""
        return {
            group.name: group.size - len(plan.kept.get(group.name, range(group.size)))
            for group in self.network.groups
        }

    def guarded(self, plan: PruningPlan) -> list[str]:
        """Return a plan's guards and what reshapes inside: the calls of each are counted apart."""
        gone = tuple(f"{name}." for name in plan.dropped)
        return [
            path
            for path in self.network.reshapes
            if any(not name or f"{path}.".startswith(f"{name}.") for name in plan.guards)
            and not f"{path}.".startswith(gone)
        ]

    def mask(self, plan: PruningPlan) -> nn.Module:
        """Return the network at full size with the parameters of everything cut set to zero.

        Raises:
            PruningError: The plan does not fit the network.
        """
        plan.check(self.network)
        return self._copy(PruningPlan(plan.kept), zero=True)

    def grow(self, plan: PruningPlan, pruned: nn.Module) -> nn.Module:
        """Return a pruned network at full size: zero in the place of all that was cut.

        It computes what the pruned network does, but where a group is mixed. Dropped blocks are
        there, with zero parameters, and are passed by.

        Args:
            plan: How the network was cut.
            pruned: The network; its weights may have changed since.

        Raises:
            PruningError: The plan does not fit the network.
        """
        plan.check(self.network)
        kept = {name: np.asarray(units, np.int64) for name, units in plan.kept.items()}
        stays = [self._positions(number, kept) for number in range(len(self._patterns))]
        own: dict[str, Tensor] = dict(pruned.named_parameters(remove_duplicate=False))
        own |= dict(pruned.named_buffers(remove_duplicate=False))
        grown = {}
        for name, tensor, _, dims in self._cuts:
            result = own[name].detach() if name in own else torch.zeros_like(tensor)
            for dim, pattern in dims if name in own else ():
                index = stays[pattern]
                if index is not None:
                    result = _spread(result, dim, index.to(result.device), tensor.shape[dim])
            grown[name] = result
        twin = self._copy(PruningPlan({}), zero=False, replaced=grown)
        for name in plan.dropped:
            twin.get_submodule(name).forward = Skip().forward
        return twin

    def _copy(
        self,
        plan: PruningPlan,
        *,
        zero: bool,
        replaced: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> nn.Module:
        memo: dict[int, Any] = {
            id(self.network.model.get_submodule(name)): Skip() for name in plan.dropped
        }
        kept = {name: np.asarray(units, np.int64) for name, units in plan.kept.items()}
        stays = [self._positions(number, kept) for number in range(len(self._patterns))]
        for name, tensor, is_parameter, dims in self._cuts:
            result = replaced.get(name, tensor).detach()
            touched = False
            for dim, pattern in dims:
                index = stays[pattern]
                if index is not None and (is_parameter or not zero):
                    index = index.to(tensor.device)
                    result = (_zero_outside if zero else _select)(result, dim, index)
                    touched = True
            if not touched:
                result = result.clone()
            if is_parameter:
                result = nn.Parameter(result, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = result
        return self._clone(self.network.model, memo)

    def _positions(self, pattern: int, kept: dict[str, Int[np.ndarray, " _"]]) -> Tensor | None:
        """Return which positions of a cut dimension stay, ``None`` for all."""
        size, members = self._patterns[pattern]
        cut = [(member, kept[group]) for group, member in members if group in kept]
        return torch.from_numpy(kept_positions(size, cut)) if cut else None

    def _clone(self, module: nn.Module, memo: dict[int, Any]) -> nn.Module:
        """Return a copy of a module tree whose tensors and dropped modules come from ``memo``.

        Does what ``copy.deepcopy`` does, ten times faster where a module has nothing but numbers,
        tensors and submodules.
        """
        known: nn.Module | None = memo.get(id(module))
        if known is not None:
            return known
        if hasattr(type(module), "__deepcopy__"):
            return copy.deepcopy(module, memo)
        template = self._templates.get(module)
        if template is None:
            template = self._templates[module] = _Template.of(module)
        twin = memo[id(module)] = type(module).__new__(type(module))
        attributes = twin.__dict__
        attributes.update(template.fixed)
        for name, factory in template.empty:
            attributes[name] = factory()
        for name in ("_parameters", "_buffers"):
            tensors = module.__dict__[name]
            attributes[name] = {k: None if v is None else memo[id(v)] for k, v in tensors.items()}
        attributes["_modules"] = {
            name: None if child is None else self._clone(child, memo)
            for name, child in module._modules.items()
        }
        for name, value in template.other:
            detach_computed(value, memo)
            attributes[name] = copy.deepcopy(value, memo)
        if template.mend is not None:
            template.mend(module, twin)
        return twin


@dataclasses.dataclass(frozen=True)
class _Template:
    """What a copy of one module takes over as it is, makes anew, or copies in depth."""

    fixed: dict[str, Any]
    empty: tuple[tuple[str, Callable[[], Any]], ...]
    other: tuple[tuple[str, Any], ...]
    mend: Mender | None

    @classmethod
    def of(cls, module: nn.Module) -> _Template:
        fixed, empty, other = {}, [], []
        for name, value in module.__dict__.items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if _immutable(value):
                fixed[name] = value
            elif type(value) in (dict, OrderedDict, set, list) and not value:
                empty.append((name, type(value)))
            else:
                other.append((name, value))
        return cls(fixed, tuple(empty), tuple(other), mender(module))


def _immutable(value: object) -> bool:
    """Return whether a value can be shared between the original and its copy."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(_immutable, value))
    return isinstance(value, _IMMUTABLE)


def prune(network: Network, plan: PruningPlan) -> nn.Module:
    """Return the pruned network; for many plans of one network keep a :class:`Surgeon`.

    Raises:
        PruningError: The plan does not fit the network.
    """
    return Surgeon(network).cut(plan)


def replay(model: nn.Module, inputs: Tensor | Inputs, plan: PruningPlan) -> nn.Module:
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


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    return tensor.index_select(dim, index)


def _spread(tensor: Tensor, dim: int, index: Tensor, size: int) -> Tensor:
    shape = [*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]]
    return tensor.new_zeros(shape).index_copy_(dim, index, tensor)


def _zero_outside(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    result = torch.zeros_like(tensor)
    return result.index_copy_(dim, index, tensor.index_select(dim, index))
