"""Models whose weights have a shape but no values, for what would not fit into memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from autoprune.errors import TraceError

_META = torch.device("meta")

#: What PyTorch tags operators with whose result, or its shape, depends on values.
_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

#: Trial cuts hold the model, a copy of it, a cut copy and one with zeroed units at once.
MEMORY_SHARE = 1 / 4

_CGROUP = Path("/sys/fs/cgroup")


def is_fake(model: nn.Module) -> bool:
    """Return whether some parameter of ``model`` has no values (is on the ``meta`` device)."""
    return any(parameter.is_meta for parameter in model.parameters())


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Build modules whose parameters have no values; buffers, which are small, keep theirs.

    ``torch.device("meta")`` would take the values of buffers as well, and with them the masks and
    indices that a forward pass is decided by.
    """
    twins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tied ones stay tied

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or isinstance(parameter, UninitializedParameter):
            return None
        if parameter not in twins:
            shape = parameter.detach().to(_META)
            twins[parameter] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
        return twins[parameter]

    handle = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        handle.remove()


def outgrows_memory(model: nn.Module) -> bool:
    """Return whether the parameters of ``model`` need over :data:`MEMORY_SHARE` of free memory."""
    free = _free_memory()
    needed = sum(parameter.nbytes for parameter in model.parameters())
    return free is not None and needed > MEMORY_SHARE * free


def running(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return the context in which ``model`` runs: by shapes alone where it is fake."""
    return ShapesOnly() if is_fake(model) else contextlib.nullcontext()


class ShapesOnly(TorchDispatchMode):
    """Computes with values where they are known and with shapes where they depend on weights.

    Positions, masks and token numbers stay ordinary tensors, so that what a model decides by them
    is decided as ever; an operator that meets a tensor without values yields one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        #: Storages of ordinary tensors that something unknown was written into.
        self._overwritten: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._any_unknown(args) or self._any_unknown(kwargs.values()):
            try:
                return self._by_shape(func, args, kwargs)
            except RuntimeError as error:
                if _DEPENDENT & set(func.tags):
                    raise TraceError(
                        f"{func} needs a value that depends on the weights, and these have none: "
                        "trace the model with its weights"
                    ) from error
                raise
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == _META:
            # A model asks for its own device: what does not depend on weights can have values.
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)

    def _by_shape(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operator yields whose operands are not all known."""
        originals: dict[int, Tensor] = {}

        def emptied(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(emptied, value))
            if not isinstance(value, Tensor) or value.is_meta:
                return value
            twin = value.to(_META)
            originals[id(twin)] = value
            return twin

        if kwargs.get("device") is not None:
            kwargs["device"] = _META
        if func._schema.is_mutable:
            for written in _written(func, args, kwargs):
                storage = written.untyped_storage()
                self._overwritten[storage._cdata] = storage
        args = tuple(map(emptied, _without_masks(func, args)))
        kwargs = {name: emptied(value) for name, value in kwargs.items()}
        if func is torch.ops.aten._grouped_mm.default:
            return _grouped_product(*args, **kwargs)
        out = func(*args, **kwargs)
        if not originals:
            return out
        return _pytree.tree_map_only(Tensor, lambda t: originals.get(id(t), t), out)

    def _any_unknown(self, values: Iterable[Any]) -> bool:
        """Return whether a tensor among arguments of an operator has no values."""
        for value in values:
            if isinstance(value, Tensor):
                if self._unknown(value):
                    return True
            elif isinstance(value, (list, tuple)) and self._any_unknown(value):
                return True
        return False

    def _unknown(self, tensor: Tensor) -> bool:
        if tensor.is_meta:
            return True
        return bool(self._overwritten) and tensor.untyped_storage()._cdata in self._overwritten


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the ordinary tensors that an operator writes into."""
    values = [
        args[index] if index < len(args) else kwargs.get(argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if argument.is_write
    ]
    leaves = _pytree.tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_meta]


def _without_masks(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of an indexing with known masks given as the positions they pick."""
    if func.overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put_):
        return args
    indices: list[Tensor | None] = []
    for index in args[1]:
        masks = index is not None and index.dtype is torch.bool and not index.is_meta
        indices += index.nonzero().unbind(1) if masks else [index]
    return (args[0], indices, *args[2:])


def _grouped_product(left: Tensor, right: Tensor, offs: Tensor | None = None, *_: Any) -> Tensor:
    """Return the shape of a grouped matrix product; PyTorch's own takes bfloat16 alone."""
    grouped_rows = left.ndim == 2 and right.ndim == 3
    if not grouped_rows or offs is None:
        raise TraceError("a grouped matrix product of this form needs values; trace with weights")
    return left.new_empty(len(left), right.shape[-1])


def _free_memory() -> int | None:
    """Return the bytes that can be taken without swapping, ``None`` where nobody says."""
    known = [value for value in (_machine_memory(), _container_memory()) if value is not None]
    return min(known, default=None)


def _machine_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        entries = {line.split()[0]: line.split()[1] for line in lines}
        return int(entries["MemAvailable:"]) * 1024
    except (OSError, KeyError):
        pass
    try:  # no Linux: half of what the machine has is a guess on the safe side
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _container_memory() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(limit - int(used["anon"]), 0)
    except (OSError, KeyError, ValueError):  # no limit reads "max"
        return None
