"""How a pruned network is made from its architecture, without running or tracing it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from torch import Tensor, nn

from autoprune.errors import PruningError
from autoprune.network.groups import Block, ChannelGroup, ParamSlice, kept_positions
from autoprune.network.network import Network
from autoprune.network.ops import OpTable
from autoprune.network.reshapes import Followed, Reshape
from autoprune.pruning.guards import guard
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon


@dataclasses.dataclass(frozen=True)
class Cut:
    """What stays of the same dimension of some tensors.

    Attributes:
        size: Extent of the dimension before the cut.
        kept: Sorted positions that stay.
        places: Name and dimension of every parameter or buffer that is cut so.
    """

    size: int
    kept: tuple[int, ...]
    places: tuple[tuple[str, int], ...]


#: The numbers of a reshaping call before and after the cut, ``None`` for one that stays as it is.
Numbers = tuple[tuple[int, int] | None, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A plan in terms of tensors instead of groups.

    A plan names groups, which another version of the tracer may find otherwise, or a model that has
    run before; tensors keep their names.

    Attributes:
        cuts: What stays of every tensor that is cut.
        dropped: Modules that are replaced by the identity.
        attributes: New values of whole-number attributes, by dotted path.
        guards: By module path, name and numbers of the reshaping calls that its code makes in turn
            and that are corrected.
    """

    cuts: tuple[Cut, ...]
    dropped: tuple[str, ...]
    attributes: dict[str, int] = dataclasses.field(default_factory=dict)
    guards: dict[str, tuple[tuple[str, Numbers], ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, plan: PruningPlan) -> Recipe:
        """Return what ``plan`` does to ``network``.

        Raises:
            PruningError: The plan does not fit the network.
        """
        plan.check(network)
        surgeon = Surgeon(network)
        plan = surgeon.complete(plan)
        shapes = {name: tuple(tensor.shape) for name, tensor in _tensors(network.model).items()}
        slices: dict[tuple[str, int], list[tuple[ParamSlice, np.ndarray]]] = {}
        for group in network.groups:
            for member in group.members if group.name in plan.kept else ():
                units = np.asarray(plan.kept[group.name], np.int64)
                slices.setdefault((member.path, member.dim), []).append((member, units))
        places: dict[tuple[int, tuple[int, ...]], list[tuple[str, int]]] = {}
        for (path, dim), cut in slices.items():
            size = shapes[path][dim]
            kept = tuple(kept_positions(size, cut).tolist())
            if len(kept) < size:
                places.setdefault((size, kept), []).append((path, dim))
        cuts = tuple(Cut(size, kept, tuple(where)) for (size, kept), where in places.items())
        removed = {
            g.name: g.size - len(plan.kept.get(g.name, range(g.size))) for g in network.groups
        }
        guards = {
            path: tuple((call.name, _numbers(call, removed)) for call in network.reshapes[path])
            for path in surgeon.guarded(plan)
        }
        return cls(cuts, plan.dropped, dict(plan.attributes), guards)

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a pruned copy of ``model``.

        Args:
            model: The unpruned architecture; it is left as it is.

        Raises:
            PruningError: ``model`` lacks a tensor, module or attribute that the recipe names, or
                has it in another size.
        """
        tensors = _tensors(model)
        modules = dict(model.named_modules())
        faults = [
            f"dimension {dim} of {name} with {cut.size} positions"
            for cut in self.cuts
            for name, dim in cut.places
            if not _has(tensors.get(name), dim, cut.size)
        ]
        named = [*filter(None, self.guards), *self.dropped]
        faults += [f"module {name!r}" for name in named if name not in modules]
        if faults:
            raise PruningError(
                f"this architecture lacks {', '.join(faults[:5])}"
                + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")
                + "; the network was made from another one or another version of it"
            )
        groups = tuple(_group(f"cut {number}", cut) for number, cut in enumerate(self.cuts))
        blocks = tuple(map(Block, self.dropped))
        table = OpTable((), (), tuple(group.size for group in groups), len(blocks))
        network = Network(model, (), groups, blocks, table, {}, Counter())
        kept = {group.name: cut.kept for group, cut in zip(groups, self.cuts, strict=True)}
        pruned = Surgeon(network).cut(PruningPlan(kept, self.dropped, self.attributes))
        for path, calls in self.guards.items():
            reshapes = [Reshape(name, tuple(map(_followed, numbers))) for name, numbers in calls]
            guard(pruned.get_submodule(path), reshapes, {_CUT: 1})
        return pruned


#: Stands for everything that went, in numbers that follow it.
_CUT = "cut"


def _numbers(call: Reshape, removed: dict[str, int]) -> Numbers:
    return tuple(None if n is None else (n.dense, n.at(removed)) for n in call.numbers)


def _followed(number: tuple[int, int] | None) -> Followed | None:
    return None if number is None else Followed(number[0], ((_CUT, number[0] - number[1]),))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _has(tensor: Tensor | None, dim: int, size: int) -> bool:
    return tensor is not None and dim < tensor.ndim and tensor.shape[dim] == size


def _group(name: str, cut: Cut) -> ChannelGroup:
    """Return the positions of a cut as units."""
    indices = np.arange(cut.size, dtype=np.int64).reshape(-1, 1)
    members = tuple(ParamSlice(path, dim, indices) for path, dim in cut.places)
    return ChannelGroup(name, cut.size, members)
