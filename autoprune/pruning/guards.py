"""Modules whose code computes widths by itself, made to compute the right ones after a cut.

Where a forward pass reshapes by numbers that no attribute holds (``x.view(b, n, c // heads)``),
the pruned module gets the numbers from what the trace knows of that call. It stays an ordinary
module with its own class's code: state dict, export and fine-tuning work as before.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.network.reshapes import (
    Followed,
    Numbers,
    Reshape,
    ReshapeMode,
    numbers_of,
    with_numbers,
)

#: What a call is given now: for each number that follows a cut, its dense value and its new one.
_Widths = tuple[tuple[int, int] | None, ...]


class Guarded(nn.Module):
    """Mixed into the class of a module whose reshaping calls are corrected."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's own forward returns."""
        with _correcting(self.__dict__["_reshape_guard"]):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return how to copy the module: its class is made when needed and has no name to find."""
        return _restore, (type(self).__mro__[2],), self.__dict__

    @property
    def corrected(self) -> bool:
        """Whether any number has been corrected yet."""
        guard: ReshapeGuard = self.__dict__["_reshape_guard"]
        return guard.corrected


class ReshapeGuard:
    """The numbers of one module's reshaping calls, in the order of its calls.

    Attributes:
        corrected: Whether the module's own code has been found to give a wrong number.
    """

    def __init__(self, reshapes: Sequence[Reshape], removed: Mapping[str, int]) -> None:
        """Work out the numbers.

        Args:
            reshapes: The calls as traced.
            removed: Units that went from each group.
        """
        self.calls = tuple((call.name, _widths(call.numbers, removed)) for call in reshapes)
        self.corrected = False


def guard(module: nn.Module, reshapes: Sequence[Reshape], removed: Mapping[str, int]) -> None:
    """Make ``module`` correct its reshaping calls.

    Args:
        module: A module of a pruned copy, changed in place.
        reshapes: Its calls as traced.
        removed: Units that went from each group.
    """
    module.__class__ = _guarded_class(type(module))
    module.__dict__["_reshape_guard"] = ReshapeGuard(reshapes, removed)


def _guarded_class(cls: type[nn.Module]) -> type[nn.Module]:
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (Guarded, cls), names)


def _restore(cls: type[nn.Module]) -> nn.Module:
    guarded = _guarded_class(cls)
    return guarded.__new__(guarded)


def _widths(numbers: Sequence[Followed | None], removed: Mapping[str, int]) -> _Widths:
    return tuple(None if n is None else (n.dense, n.at(removed)) for n in numbers)


class _Correct(ReshapeMode):
    """Corrects the numbers of the guarded modules that run inside it, the innermost one's."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[_Forward] = []

    def reshaping(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the call's result with the right numbers."""
        name = func.__name__
        given = numbers_of(name, args, kwargs)
        if given is None:
            return func(*args, **kwargs)
        forward = self.running[-1]
        widths = forward.widths(name, len(given.values))
        values = given.values if widths is None else _right(name, args[0], given, widths)
        if values == given.values:
            return func(*args, **kwargs)
        forward.guard.corrected = True
        return func(*with_numbers(name, args, kwargs, Numbers(values, given.dims)))


class _Forward:
    """One forward pass of one guarded module."""

    def __init__(self, guard: ReshapeGuard) -> None:
        self.guard, self._next = guard, 0

    def widths(self, name: str, count: int) -> _Widths | None:
        """Return the numbers of the next such call, ``None`` for one that was not traced.

        Calls are left out where the code does something in its first pass only.
        """
        for place in range(self._next, len(self.guard.calls)):
            expected, widths = self.guard.calls[place]
            if expected == name and len(widths) == count:
                self._next = place + 1
                return widths
        return None


class _Active(threading.local):
    """The mode of this thread: nested guarded modules share it, or each would see every call."""

    mode: _Correct | None = None


_ACTIVE = _Active()


@contextlib.contextmanager
def _correcting(guard: ReshapeGuard) -> Iterator[None]:
    """Let the calls of this thread be corrected as one module needs it."""
    outermost = _ACTIVE.mode is None
    mode = _ACTIVE.mode = _ACTIVE.mode or _Correct()
    mode.running.append(_Forward(guard))
    try:
        with mode if outermost else contextlib.nullcontext():
            yield
    finally:
        mode.running.pop()
        if outermost:
            _ACTIVE.mode = None


def _right(
    name: str, tensor: Tensor, given: Numbers, widths: _Widths
) -> tuple[int | torch.SymInt, ...]:
    """Return the numbers that a call should have been given."""
    exact = tuple(
        value if width is None or value == -1 else width[1]
        for value, width in zip(given.values, widths, strict=True)
    )
    if name in ("narrow", "__getitem__", "expand"):
        return exact
    if name == "split":
        whole = tensor.shape[given.dims[0]]
        return exact if len(exact) == 1 or sum(exact) == whole else given.values
    whole = tensor.shape[given.dims[0]] if name == "unflatten" else tensor.numel()
    if _fits(exact, whole):
        return exact
    # Another batch than the traced one is merged into one of the dimensions.
    choices = itertools.product(*map(_choices, given.values, widths))
    return next((values for values in choices if _fits(values, whole)), given.values)


def _choices(value: Any, width: tuple[int, int] | None) -> list[Any]:
    """Return what a number may mean: the new width, one already right, or a multiple of the old."""
    if width is None or value == -1:
        return [value]
    before, after = width
    return [after, value, *([value * after // before] if value * after % before == 0 else [])]


def _fits(values: Sequence[Any], whole: Any) -> bool:
    """Return whether a shape, in which one extent may be left open, has ``whole`` elements."""
    known = math.prod(value for value in values if value != -1)
    return bool(whole % max(known, 1) == 0 if -1 in values else known == whole)
