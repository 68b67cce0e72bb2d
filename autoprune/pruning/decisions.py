"""What a network decides by its own numbers, so that copies of it can be compared to the end.

Which boxes are left, which tokens are kept, which way a condition goes: a difference in the last
digit can change it, and the two copies then compute different things. A copy that is given the
decisions of the other computes the same things in the same order, and all numbers can be compared,
those that it would have decided by included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.network.call import base_name, normal_dim, tensors_in

#: Operators that return what is largest along a dimension, and its places.
_RANKED = frozenset(
    {"topk", "sort", "max", "min", "kthvalue", "median", "mode", "cummax", "cummin"}
)


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """An operator that made whole numbers or truth values from others.

    Attributes:
        name: The operator.
        grounds: Its operands.
        result: What it returned.
    """

    name: str
    grounds: tuple[Tensor, ...]
    result: Any

    def alike(self, other: Decision) -> bool:
        """Return whether both decide the same question: about as many numbers."""
        return self.name == other.name and [g.shape for g in self.grounds] == [
            g.shape for g in other.grounds
        ]


class Decisions(TorchDispatchMode):
    """Notes the decisions of one pass, or gives it those of another.

    Attributes:
        made: The decisions, in order.
    """

    def __init__(self, given: Sequence[Decision] = ()) -> None:
        """Begin.

        Args:
            given: What to decide, as long as the pass asks the same questions.
        """
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.made: list[Decision] = []
        self._given, self._next = given, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return what the operator returns, or what was decided elsewhere."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operands = tuple(t for t in tensors_in((args, kwargs)) if t.is_floating_point())
        if not operands or not _decides(func, out):
            return out
        decision = Decision(base_name(func), operands, out)
        given = self._given_for(decision)
        if given is not None:
            out = _followed(func, args, kwargs, out, given.result)
        self.made.append(dataclasses.replace(decision, result=_copied(out)))
        return out

    def _given_for(self, decision: Decision) -> Decision | None:
        """Return what to decide; ``None`` where no such question came next in the other pass."""
        rest = self._given[self._next :]
        for ahead, given in enumerate(rest):
            if given.name == decision.name and (ahead == 0 or given.alike(decision)):
                self._next += ahead + 1
                return given if given.alike(decision) else None
        return None


def agree(some: Sequence[Decision], others: Sequence[Decision]) -> bool:
    """Return whether two passes decided alike whatever both had to decide."""
    return len(some) == len(others) and all(
        not one.alike(other) or _equal(one.result, other.result)
        for one, other in zip(some, others, strict=True)
    )


def grounds(
    some: Sequence[Decision], others: Sequence[Decision]
) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield the numbers that two passes decided the same questions by."""
    for one, other in zip(some, others, strict=False):
        if one.alike(other):
            yield from zip(one.grounds, other.grounds, strict=True)


def _decides(func: Any, out: Any) -> bool:
    """Return whether an operator turns numbers into whole ones or truth values."""
    if func._schema.is_mutable or "empty" in base_name(func):
        return False
    results = list(tensors_in(out))
    exact = [t for t in results if not (t.is_floating_point() or t.is_complex())]
    if base_name(func) in _RANKED:
        return bool(exact)
    return len(exact) == len(results)


def _followed(func: Any, args: Any, kwargs: Any, out: Any, given: Any) -> Any:
    """Return the given decision; values that were ranked are read where it points to."""
    if base_name(func) not in _RANKED:
        return _copied(given)
    tensor, places = args[0], given[1].clone()
    names = [argument.name for argument in func._schema.arguments]
    named = dict(zip(names, args, strict=False)) | kwargs
    dim = normal_dim(named.get("dim", -1), tensor.ndim)
    flat = places.ndim < tensor.ndim
    values = tensor.gather(dim, places.unsqueeze(dim) if flat else places)
    return values.squeeze(dim) if flat else values, places


def _copied(value: Any) -> Any:
    """Return a copy that later in-place operators of the network do not change."""
    return _pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)


def _equal(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor):
        places = [list(tensors_in(result))[-1:] for result in (left, right)]
        return torch.equal(*places[0], *places[1]) if all(places) else bool(left == right)
    return torch.equal(left, right)
