"""One operator call of the traced forward pass, as the rules see it, and the table of rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from autoprune.network.labels import Coupling, Planes
from autoprune.registry import Registry


@dataclasses.dataclass(frozen=True)
class Call:
    """An ATen operator that has just run.

    Attributes:
        name: Operator name without overload and the in-place underscore: ``"relu"``.
        func: The overload that ran.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: What it returned.
        coupling: Where rules note what they learn.
        planes_of: Planes of a tensor of this pass, ``()`` for one that carries no label.
        is_filled: Whether a tensor was made of one number (an initial state, a mask): whether its
            size follows a cut is for the trial cut to tell.
        numbers_of: The plane whose positions a tensor's values number (experts that a router
            picked), ``None`` for any other tensor.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    coupling: Coupling
    planes_of: Callable[[Tensor], Planes]
    is_filled: Callable[[Tensor], bool]
    numbers_of: Callable[[Tensor], Tensor | None]

    @property
    def full_name(self) -> str:
        """The name with its namespace: ``"aten.relu"``."""
        return f"{self.func.namespace}.{self.name}"

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments, lists flattened, in order."""
        return list(tensors_in((self.args, self.kwargs)))

    @property
    def outputs(self) -> list[Tensor]:
        """Every tensor that was returned, in order."""
        return list(tensors_in(self.out))

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def freeze(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Freeze every label that ``tensors`` carry or number."""
        for tensor in tensors:
            numbers = self.numbers_of(tensor)
            for plane in (*self.planes_of(tensor), *(() if numbers is None else (numbers,))):
                self.coupling.freeze(plane, reason)


#: A rule returns the planes of the first output, or a list with the planes of every output.
Rule = Callable[[Call], "Planes | Sequence[Planes]"]

RULES: Registry[Rule] = Registry("operator rule", package="autoprune.network.rules")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a rule for each operator name."""

    def store(function: Rule) -> Rule:
        for name in names:
            RULES.register(name)(function)
        return function

    return store


def tensors_in(value: object) -> Iterable[Tensor]:
    """Yield the tensors inside nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


#: Labels are kept in main memory, wherever the model runs.
LABEL_DEVICE = torch.device("cpu")


def for_labels(arguments: Any) -> Any:
    """Return arguments of an operator with their tensors where labels are, ready to index those.

    Numbers without values all name the first position: labels that vary are then seen to change.
    """

    def known(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=LABEL_DEVICE)
        return tensor.to(LABEL_DEVICE)

    return _pytree.tree_map_only(Tensor, known, arguments)


def normal_dim(dim: int, ndim: int) -> int:
    """Return ``dim`` counted from the front."""
    return dim % ndim if ndim else 0


def base_name(func: Any) -> str:
    """Return ``"relu"`` for ``aten.relu_.default``."""
    name: str = func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


#: Elementwise operators that PyTorch does not tag.
_UNTAGGED = frozenset(
    {
        *("hardswish", "hardtanh", "dropout", "native_dropout", "log_sigmoid_forward"),
        *("rrelu_with_noise", "complex", "polar"),
    }
)


def is_pointwise(func: Any) -> bool:
    """Return whether the operator is elementwise, as PyTorch itself tags it."""
    return torch.Tag.pointwise in func.tags or base_name(func) in _UNTAGGED


#: Operators that make a tensor of one number.
_FACTORIES = frozenset(
    {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "scalar_tensor"}
)


def makes_filled(call: Call) -> bool:
    """Return whether a call makes a tensor of one number, or only moves and scales such."""
    if call.name in _FACTORIES:
        return True
    tensors = [tensor for tensor in call.tensors if tensor.ndim]
    return bool(tensors) and all(map(call.is_filled, tensors))
