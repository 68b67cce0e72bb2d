"""The numbers that a model's own code hands to reshaping calls, and how they follow a cut.

Code such as ``x.view(batch, tokens, self.dim // 12, 64)`` computes widths from anything: the input,
an attribute, a literal. While a model is traced every such call is noted with the labels of what
came out, so that after a cut each number is known whatever computed it.
"""

from __future__ import annotations

import abc
import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from autoprune.network.labels import Planes, varying

#: Calls that take widths as plain numbers.
_NAMES = frozenset({"view", "reshape", "unflatten", "expand", "split", "narrow", "__getitem__"})


@dataclasses.dataclass(frozen=True)
class Followed:
    """A number in a reshaping call.

    Attributes:
        dense: Its value in the unpruned network.
        terms: How much it shrinks with each unit that goes, by group name.
    """

    dense: int
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, removed: Mapping[str, int]) -> int:
        """Return its value after ``removed`` units went from each group."""
        return self.dense - sum(times * removed.get(group, 0) for group, times in self.terms)


@dataclasses.dataclass(frozen=True)
class Reshape:
    """A reshaping call of one module.

    Attributes:
        name: The method that was called: ``"view"``.
        numbers: For each number it was given, how it follows a cut; ``None`` for one that has
            nothing to do with channels and stays as the code computes it.
    """

    name: str
    numbers: tuple[Followed | None, ...]


@dataclasses.dataclass(frozen=True)
class Spread:
    """The atoms behind a number: ``atoms[i]`` are those at each place that has position ``i``."""

    atoms: Int[np.ndarray, "positions places"]

    def follow(
        self,
        component: Int[np.ndarray, " atoms"],
        unit_group: Int[np.ndarray, " components"],
        names: Sequence[str],
        sizes: Sequence[int],
    ) -> Followed | None:
        """Return how the number of positions follows the groups.

        ``None`` where it depends on which of a group's units go, not only on how many.

        Args:
            component: Unit of each atom.
            unit_group: Index of the group of each unit, -1 for none.
            names: Name of each group.
            sizes: Units of each group.
        """
        units = component[self.atoms]
        whole = (units == units[:, :1]).all(axis=1) & (self.atoms[:, 0] > 0)
        units, times = np.unique(units[whole, 0], return_counts=True)
        terms = []
        for group in np.unique(unit_group[units]):
            counts = times[unit_group[units] == group]
            if group >= 0:
                if len(counts) != sizes[group] or counts.min() != counts.max():
                    return None
                terms.append((names[group], int(counts[0])))
        return Followed(len(self.atoms), tuple(terms))


@dataclasses.dataclass(frozen=True)
class Note:
    """A reshaping call as it is seen while tracing."""

    name: str
    numbers: tuple[Spread | None, ...]

    def resolve(self, follow: Callable[[Spread], Followed | None]) -> Reshape:
        """Return the call with every number followed."""
        return Reshape(self.name, tuple(s if s is None else follow(s) for s in self.numbers))


class ReshapeMode(TorchFunctionMode, abc.ABC):
    """Sees every reshaping call that Python code makes, also inside PyTorch's own attention."""

    @abc.abstractmethod
    def reshaping(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of a reshaping call."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return what ``func`` returns."""
        if func is torch.nn.functional.multi_head_attention_forward:
            with self:
                return _open_attention()(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _NAMES and isinstance(args[0], Tensor):
            return self.reshaping(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class _WithoutAssertions(ast.NodeTransformer):
    """Takes assertions out of a function, written either way."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.copy_location(ast.Pass(), node)

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        last = node.body[-1]
        asserts = isinstance(last, ast.Raise) and "AssertionError" in ast.unparse(last)
        return ast.copy_location(ast.Pass(), node) if asserts and not node.orelse else node


@functools.cache
def _open_attention() -> Callable[..., Any]:
    """Return PyTorch's attention so that the reshaping calls inside it are seen and may change.

    Its code asks first whether a mode wants to handle it as a whole, and asserts that all heads
    together are as wide as the input, which a cut makes untrue. Compiling it again without both
    keeps every option of the original.
    """
    functional = torch.nn.functional
    namespace = {**vars(functional), "has_torch_function": lambda _: False}
    for name in ("_in_projection", "_in_projection_packed", "multi_head_attention_forward"):
        tree = ast.parse(inspect.getsource(getattr(functional, name)))
        opened = ast.fix_missing_locations(_WithoutAssertions().visit(tree))
        exec(compile(opened, functional.__file__, "exec"), namespace)
    attention: Callable[..., Any] = namespace["multi_head_attention_forward"]
    return attention


class ReshapeWatch(ReshapeMode):
    """Notes every reshaping call while a model is traced."""

    def __init__(
        self, planes_of: Callable[[Tensor], Planes], store: Callable[[Note], None]
    ) -> None:
        """Watch.

        Args:
            planes_of: Planes of a tensor of this pass.
            store: Takes each note, in the order of the calls.
        """
        super().__init__()
        self._planes_of, self._store = planes_of, store

    def reshaping(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the call's result, noting the labels behind its numbers."""
        out = func(*args, **kwargs)
        numbers = numbers_of(func.__name__, args, kwargs)
        if numbers is not None:
            spreads = self._spreads(func.__name__, args, numbers, out)
            self._store(Note(func.__name__, tuple(spreads)))
        return out

    def _spreads(
        self, name: str, args: tuple[Any, ...], numbers: Numbers, out: Any
    ) -> Iterator[Spread | None]:
        if name == "split":
            pieces = out if len(numbers.values) > 1 else out[:1]
            yield from (self._spread(piece, numbers.dims[0]) for piece in pieces)
        elif name in ("narrow", "__getitem__"):
            for dim, bound in zip(numbers.dims, numbers.values, strict=True):
                yield self._spread(args[0], dim, bound)
        else:
            yield from (self._spread(out, dim) for dim in numbers.dims)

    def _spread(self, tensor: Tensor, dim: int, bound: Any = None) -> Spread | None:
        """Return the atoms along ``dim``, up to ``bound``."""
        for plane in self._planes_of(tensor):
            if dim in varying(plane):
                atoms = plane.movedim(dim, 0).reshape(tensor.shape[dim], -1)[:bound]
                return Spread(atoms.numpy())
        return None


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers of one reshaping call.

    Attributes:
        values: The numbers, as the code gave them; bounds of slices counted from the front.
        dims: The dimension that each is about: of the result for shapes, of the operand for
            the pieces of a split and the bounds of slices.
    """

    values: tuple[int | torch.SymInt, ...]
    dims: tuple[int, ...]


def numbers_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Numbers | None:
    """Return the numbers of a reshaping call, ``None`` where it has none that could be wrong."""
    return _READERS[name](args[0], args[1:], kwargs)


def _shape(tensor: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Numbers | None:
    given = rest or tuple(kwargs.values())
    sizes = given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given
    # While a model is exported, an open batch size is a symbol.
    if not all(isinstance(size, (int, torch.SymInt)) for size in sizes):
        return None
    return Numbers(tuple(sizes), tuple(range(len(sizes))))


def _unflatten(tensor: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Numbers | None:
    dim, sizes = _given(rest, kwargs, "dim", "sizes")
    if not isinstance(dim, int):
        return None
    first = dim % tensor.ndim
    return Numbers(tuple(sizes), tuple(range(first, first + len(sizes))))


def _split(tensor: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Numbers | None:
    sizes, dim = _given(rest, kwargs, "split_size", "dim")
    dim = dim or 0
    values = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return Numbers(values, (dim % tensor.ndim,) * len(values))


def _narrow(tensor: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Numbers | None:
    dim, start, length = _given(rest, kwargs, "dim", "start", "length")
    if not isinstance(start, int):
        return None
    first = start % tensor.shape[dim] if start < 0 else start
    return Numbers((first, first + length), (dim % tensor.ndim,) * 2)


def _getitem(tensor: Tensor, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Numbers | None:
    values: list[int] = []
    dims: list[int] = []
    for _, dim, item in _slices(tensor, rest[0]):
        start, stop, _ = item.indices(tensor.shape[dim])
        values += [start, stop]
        dims += [dim, dim]
    return Numbers(tuple(values), tuple(dims)) if values else None


def _slices(tensor: Tensor, index: Any) -> Iterator[tuple[int, int, slice]]:
    """Yield place, dimension and value of every slice in an index that leaves something out."""
    items = index if isinstance(index, tuple) else (index,)
    taken = sum(1 for item in items if item is not None and item is not Ellipsis)
    dim = 0
    for place, item in enumerate(items):
        if isinstance(item, (Tensor, list, bool)):
            return
        if item is Ellipsis:
            dim += tensor.ndim - taken
        elif item is not None:
            if isinstance(item, slice) and _plain(item):
                yield place, dim, item
            dim += 1


def _plain(item: slice) -> bool:
    bounds = [bound for bound in (item.start, item.stop) if bound is not None]
    return bool(bounds) and all(isinstance(b, int) for b in bounds) and item.step in (None, 1)


def _given(rest: tuple[Any, ...], kwargs: Mapping[str, Any], *names: str) -> list[Any]:
    """Return arguments given by position or by name, ``None`` for those that are absent."""
    return [*rest, *(kwargs.get(name) for name in names[len(rest) :])]


_READERS: Mapping[str, Callable[[Tensor, tuple[Any, ...], Mapping[str, Any]], Numbers | None]] = {
    "view": _shape,
    "reshape": _shape,
    "expand": _shape,
    "unflatten": _unflatten,
    "split": _split,
    "narrow": _narrow,
    "__getitem__": _getitem,
}


def with_numbers(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], numbers: Numbers
) -> tuple[Any, ...]:
    """Return positional arguments for the same call with other numbers."""
    tensor, values = args[0], numbers.values
    if name == "unflatten":
        return tensor, numbers.dims[0], values
    if name == "split":
        return tensor, values if len(values) > 1 else values[0], numbers.dims[0]
    if name == "narrow":
        return tensor, numbers.dims[0], values[0], values[1] - values[0]
    if name == "__getitem__":
        return tensor, _reindexed(tensor, args[1], values)
    return tensor, values


def _reindexed(tensor: Tensor, index: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return an index whose slices have other bounds."""
    items = list(index) if isinstance(index, tuple) else [index]
    bounds = zip(values[::2], values[1::2], strict=True)
    for (place, _, _), (start, stop) in zip(_slices(tensor, index), bounds, strict=True):
        items[place] = slice(start, stop)
    return tuple(items)
