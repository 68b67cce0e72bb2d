"""The search space: one ratio per channel group, one keep or drop per removable block."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from autoprune.errors import SettingsError
from autoprune.network.groups import Block, ChannelGroup
from autoprune.strategy.settings import (
    BlockSettings,
    GroupSettings,
    SpaceSettings,
    load_space_settings,
)
from autoprune.strategy.ties import Grid, Member, shared_grid, tied

__all__ = [
    "BlockSettings",
    "Candidate",
    "Dimension",
    "GroupSettings",
    "SearchSpace",
    "SpaceSettings",
    "build_space",
    "load_space_settings",
]

#: With ``multiple: device`` a group too small for the device's alignment gets a finer grid, down
#: to this many widths: what padding costs is the latency predictor's business, not the grid's.
_FEWEST_WIDTHS = 4

#: More searched groups than that are tied by their structure unless the settings say otherwise.
MOST_APART = 200


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pruned network as plain values.

    Attributes:
        ratios: Fraction removed of each channel group, in the search space's order.
        dropped: Whether each removable block is replaced by the identity.
        rung: How long its network is trained before it is scored; 0 is not at all.
    """

    ratios: tuple[float, ...]
    dropped: tuple[bool, ...] = ()
    rung: int = 0

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits, the same in every process; equal for equal candidates.

        Candidates that realise the same network have the same key once they are snapped.
        """
        # Adding 0.0 turns -0.0 into 0.0.
        ratios = ",".join(f"{ratio + 0.0:.9f}" for ratio in self.ratios)
        flags = "".join("1" if flag else "0" for flag in self.dropped)
        text = f"{ratios}|{flags}" + (f"|{self.rung}" if self.rung else "")
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclasses.dataclass(frozen=True)
class Dimension:
    """The widths one channel group may take.

    >>> Dimension("conv", 20, 5, 8).widths.tolist()
    [8, 16, 20]

    Attributes:
        group: The group's name.
        size: Its full width in units.
        minimum: Fewest units that stay; equal to ``size`` where the group is not searched.
        multiple: Kept units are a multiple of this, or the full size.
    """

    group: str
    size: int
    minimum: int
    multiple: int = 1

    def __post_init__(self) -> None:
        """Raise SettingsError unless ``1 <= minimum <= size`` and ``multiple >= 1``."""
        if not (1 <= self.minimum <= self.size and self.multiple >= 1):
            raise SettingsError(
                f"group {self.group!r}: expected 1 <= minimum <= size and multiple >= 1, "
                f"got minimum {self.minimum}, size {self.size}, multiple {self.multiple}"
            )

    @property
    def smallest(self) -> int:
        """The narrowest allowed width in units: ``minimum`` rounded up to the grid."""
        return min(-(-self.minimum // self.multiple) * self.multiple, self.size)

    @property
    def searched(self) -> bool:
        """Whether there is more than one width to choose from."""
        return self.smallest < self.size

    @property
    def max_ratio(self) -> float:
        """The largest fraction that can be removed."""
        return 1.0 - self.smallest / self.size

    @property
    def widths(self) -> Int[np.ndarray, " levels"]:
        """Every allowed width in units, narrowest first."""
        grid = np.arange(self.smallest, self.size, self.multiple, dtype=np.int64)
        return np.append(grid, np.int64(self.size))


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Every candidate that may be proposed.

    Two rules make the form of a candidate unique, so that its key is stable: the ratio of a group
    inside a dropped block is 0, and of more than ``max_dropped`` dropped blocks only that many,
    spread evenly over the depth, stay dropped.

    Attributes:
        dimensions: One per channel group of the network, in its order, searched or not; groups
            that are tied are one dimension, in the place of the first of them.
        blocks: Names of the removable blocks, in the network's order.
        droppable: Whether each block may be dropped.
        inside: For each block the indices of the groups that live wholly inside it.
        max_dropped: Most blocks one candidate drops; ``None`` sets no limit.
        members: For each dimension the network's groups that follow it; empty where each is the one
            group of its place.
    """

    dimensions: tuple[Dimension, ...]
    blocks: tuple[str, ...] = ()
    droppable: tuple[bool, ...] = ()
    inside: tuple[tuple[int, ...], ...] = ()
    max_dropped: int | None = None
    members: tuple[tuple[Member, ...], ...] = ()

    def __post_init__(self) -> None:
        """Raise SettingsError unless ``droppable`` and ``inside`` fit ``blocks``."""
        if len(self.droppable) != len(self.blocks) or len(self.inside) not in (0, len(self.blocks)):
            raise SettingsError(
                f"expected one droppable and inside entry for each of {len(self.blocks)} blocks, "
                f"got {len(self.droppable)} and {len(self.inside)}"
            )

    # --- in Optuna's words ------------------------------------------------------------------

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions of all searched parameters, in a fixed order.

        A group gives ``"ratio/<group>"``, continuous from 0 to its largest ratio; a droppable
        block gives ``"drop/<block>"``, ``False`` or ``True``.
        """
        searched: dict[str, BaseDistribution] = {
            f"ratio/{dim.group}": FloatDistribution(0.0, dim.max_ratio)
            for dim in self.dimensions
            if dim.searched
        }
        for block, droppable in zip(self.blocks, self.droppable, strict=True):
            if droppable and self.max_dropped != 0:
                searched[f"drop/{block}"] = CategoricalDistribution([False, True])
        return searched

    def candidate(self, params: Mapping[str, float | bool]) -> Candidate:
        """Return the candidate that an Optuna trial's parameters describe, not yet snapped.

        Args:
            params: Values by parameter name; what is missing is not pruned.

        Raises:
            SettingsError: A parameter that the space does not have, as happens when a study is
                resumed with another model or search space.
        """
        foreign = sorted(params.keys() - self.distributions().keys())
        if foreign:
            raise SettingsError(
                f"parameters {foreign} are not in this search space; was the study made for "
                "another model or with other search-space settings?"
            )
        return Candidate(
            tuple(float(params.get(f"ratio/{dim.group}", 0.0)) for dim in self.dimensions),
            tuple(bool(params.get(f"drop/{block}", False)) for block in self.blocks),
        )

    def params(self, candidate: Candidate) -> dict[str, float | bool]:
        """Return the Optuna parameters of a candidate, those of :meth:`distributions` only."""
        values: dict[str, float | bool] = {
            f"ratio/{dim.group}": min(max(float(ratio), 0.0), dim.max_ratio)
            for dim, ratio in zip(self.dimensions, candidate.ratios, strict=True)
        }
        for block, gone in zip(self.blocks, candidate.dropped, strict=True):
            values[f"drop/{block}"] = bool(gone)
        return {name: values[name] for name in self.distributions()}

    # --- as arrays ----------------------------------------------------------------------------

    def widths(self, candidates: Sequence[Candidate]) -> Int[np.ndarray, "n groups"]:
        """Return the kept units of each group, on the width grid."""
        return self.realise(*self._matrices(candidates))[0]

    def keep(self, candidates: Sequence[Candidate]) -> Bool[np.ndarray, "n blocks"]:
        """Return whether each block is kept."""
        return self.realise(*self._matrices(candidates))[1]

    def realise(
        self, ratios: Float[np.ndarray, "n groups"], dropped: Bool[np.ndarray, "n blocks"]
    ) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
        """Return the widths and kept blocks that ratios and drops stand for.

        Args:
            ratios: Fraction removed per group; each goes to the nearest allowed width, and to the
                wider one of two that are equally near.
            dropped: Whether each block is dropped.

        Returns:
            Kept units per group and kept blocks, in the unique form.
        """
        keep = ~(dropped & np.array(self.droppable, bool))
        if self.max_dropped is not None:
            for row in np.flatnonzero((~keep).sum(axis=1) > self.max_dropped):
                gone = np.flatnonzero(~keep[row])
                spread = gone[np.arange(self.max_dropped) * len(gone) // max(self.max_dropped, 1)]
                keep[row] = True
                keep[row, spread] = False
        wanted = self.sizes * (1.0 - ratios)
        lower = np.floor(wanted / self.multiples) * self.multiples
        upper = np.minimum(lower + self.multiples, self.sizes)
        nearest = np.where(upper - wanted <= wanted - lower, upper, lower)
        widths = np.clip(nearest, self.smallest_widths, self.sizes).astype(np.int64)
        return np.where(self.active(keep), widths, self.sizes), keep

    def active(self, keep: Bool[np.ndarray, "n blocks"]) -> Bool[np.ndarray, "n groups"]:
        """Return which groups still exist: those not inside a dropped block."""
        # In single precision, which counts exactly this far, the product is many times faster.
        gone = (~keep).astype(np.float32) @ self._inside
        alive: Bool[np.ndarray, "n groups"] = gone == 0
        return alive

    def candidates(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> list[Candidate]:
        """Return the candidates with these widths and kept blocks, snapped."""
        widths, keep = self.realise(1.0 - widths / self.sizes, ~keep)
        ratios = 1.0 - widths / self.sizes
        return [
            Candidate(tuple(row), tuple(gone))
            for row, gone in zip(ratios.tolist(), (~keep).tolist(), strict=True)
        ]

    def snap(self, candidate: Candidate) -> Candidate:
        """Return the candidate in its unique form, with ratios on the width grid.

        Snapping a snapped candidate changes nothing.
        """
        return self.candidates(*self.realise(*self._matrices([candidate])))[0]

    def dense(self) -> Candidate:
        """Return the candidate that removes nothing."""
        return Candidate((0.0,) * len(self.dimensions), (False,) * len(self.blocks))

    def smallest(self) -> Candidate:
        """Return the candidate with every group at its narrowest and no block dropped."""
        ratios = tuple(dim.max_ratio for dim in self.dimensions)
        return self.snap(Candidate(ratios, (False,) * len(self.blocks)))

    # --- the network's groups ---------------------------------------------------------------

    @cached_property
    def parts(self) -> tuple[tuple[Member, ...], ...]:
        """For each dimension the network's groups that follow it; one where nothing is tied."""
        return self.members or tuple(
            (Member(index, dim.group, dim.size),) for index, dim in enumerate(self.dimensions)
        )

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the network's groups, in its order."""
        ordered = sorted((m for members in self.parts for m in members), key=lambda m: m.index)
        return tuple(member.group for member in ordered)

    def network_widths(
        self, widths: Int[np.ndarray, "n dimensions"]
    ) -> Int[np.ndarray, "n groups"]:
        """Return the kept units of the network's groups for widths of the dimensions."""
        if not self.members:
            return widths
        expanded = np.zeros((len(widths), len(self.groups)), np.int64)
        for dim, members in enumerate(self.members):
            for member in members:
                expanded[:, member.index] = widths[:, dim] * member.units
        return expanded

    @cached_property
    def sizes(self) -> Int[np.ndarray, " groups"]:
        """Full width of each group in units."""
        return np.array([dim.size for dim in self.dimensions], np.int64)

    @cached_property
    def smallest_widths(self) -> Int[np.ndarray, " groups"]:
        """Narrowest allowed width of each group in units."""
        return np.array([dim.smallest for dim in self.dimensions], np.int64)

    @cached_property
    def multiples(self) -> Int[np.ndarray, " groups"]:
        """Step of each group's width grid in units."""
        return np.array([dim.multiple for dim in self.dimensions], np.int64)

    @cached_property
    def _inside(self) -> Float[np.ndarray, "blocks groups"]:
        matrix = np.zeros((len(self.blocks), len(self.dimensions)), np.float32)
        for block, groups in enumerate(self.inside):
            matrix[block, list(groups)] = 1
        return matrix

    def _matrices(
        self, candidates: Sequence[Candidate]
    ) -> tuple[Float[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
        count = len(candidates)
        ratios = np.array([candidate.ratios for candidate in candidates], float)
        dropped = np.array([candidate.dropped for candidate in candidates], bool)
        return (
            ratios.reshape(count, len(self.dimensions)),
            dropped.reshape(count, len(self.blocks)),
        )


def build_space(
    groups: Sequence[ChannelGroup],
    blocks: Sequence[Block],
    settings: SpaceSettings,
    *,
    alignment: int,
) -> SearchSpace:
    """Return the search space of a traced network.

    Args:
        groups: The network's channel groups.
        blocks: The network's removable blocks.
        settings: What may be removed.
        alignment: Channel multiple the device computes in, used by ``multiple: device``.

    Raises:
        SettingsError: Patterns that match no group or block; all are listed, with near names.
    """
    faults = [
        *_unmatched("group", settings.groups, [group.name for group in groups]),
        *_unmatched("group", dict.fromkeys(settings.ties), [group.name for group in groups]),
        *_unmatched("block", settings.blocks, [block.name for block in blocks]),
    ]
    if faults:
        raise SettingsError("\n".join(["search space does not fit the network:", *faults]))
    each = [_dimension(group, settings, alignment) for group in groups]
    isomorphic = ties_isomorphic(groups, settings, alignment=alignment)
    ties = tied(groups, settings.ties, isomorphic=isomorphic)
    dimensions, members = _tied(each, ties)
    home = {member.group: dim for dim, parts in enumerate(members) for member in parts}
    limit = math.floor(settings.max_dropped * len(blocks) + 1e-9)
    return SearchSpace(
        dimensions=dimensions,
        blocks=tuple(block.name for block in blocks),
        droppable=tuple(_droppable(block, settings) and limit > 0 for block in blocks),
        inside=tuple(_inside(block, home, members) for block in blocks),
        max_dropped=limit,
        members=members if len(dimensions) < len(groups) else (),
    )


def ties_isomorphic(
    groups: Sequence[ChannelGroup], settings: SpaceSettings, *, alignment: int
) -> bool:
    """Return whether groups of the same structure share one ratio in :func:`build_space`."""
    if settings.isomorphic == "auto":
        return sum(_dimension(g, settings, alignment).searched for g in groups) > MOST_APART
    return settings.isomorphic


def _tied(
    each: Sequence[Dimension], ties: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Dimension, ...], tuple[tuple[Member, ...], ...]]:
    """Return the dimensions with those of each tie in one, and the groups that follow each.

    Groups that cannot be cut stay out of their tie.
    """
    followers: dict[int, tuple[Dimension, tuple[Member, ...]]] = {
        index: (dim, (Member(index, dim.group, dim.size),)) for index, dim in enumerate(each)
    }
    faults = []
    for name, indices in ties.items():
        cut = [index for index in indices if each[index].searched]
        if len(cut) < 2:
            continue
        grids = [Grid(each[i].size, each[i].minimum, each[i].multiple) for i in cut]
        grid = shared_grid(grids)
        minimum = min(grid.minimum, grid.size)
        joined = Dimension(f"tie:{name}", grid.size, minimum, grid.multiple)
        if not joined.searched:
            sizes = ", ".join(f"{each[i].group} ({each[i].size})" for i in cut[:4])
            faults.append(f"  ties: {name!r} leaves no common widths to {sizes}; tie fewer groups")
        parts = [Member(i, each[i].group, each[i].size, each[i].size // grid.size) for i in cut]
        for index in cut[1:]:
            del followers[index]
        followers[cut[0]] = joined, tuple(parts)
    if faults:
        raise SettingsError("\n".join(["search space does not fit the network:", *faults]))
    return tuple(dim for dim, _ in followers.values()), tuple(m for _, m in followers.values())


def _inside(
    block: Block, home: Mapping[str, int], members: Sequence[tuple[Member, ...]]
) -> tuple[int, ...]:
    """Return the dimensions all of whose groups live wholly inside a block."""
    within = {home[name] for name in block.groups if name in home}
    return tuple(
        sorted(dim for dim in within if all(m.group in block.groups for m in members[dim]))
    )


def _unmatched(kind: str, patterns: Mapping[str, object], names: Sequence[str]) -> list[str]:
    """Return one line per pattern that matches none of ``names``."""
    lines = []
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            continue
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
        hint = f"near names: {', '.join(near)}" if near else f"the network has {len(names)} {kind}s"
        lines.append(f"  {kind}s: no {kind} matches {pattern!r}; {hint}")
    return lines


def _dimension(group: ChannelGroup, settings: SpaceSettings, alignment: int) -> Dimension:
    chosen = settings.model_dump(include={"max_ratio", "minimum_units", "multiple", "step"})
    for pattern, override in settings.groups.items():
        if fnmatch.fnmatchcase(group.name, pattern):
            chosen |= override.model_dump(exclude_none=True)
    if chosen.get("freeze", False):
        return Dimension(group.name, group.size, group.size)
    # The small term keeps 10 * (1 - 0.7) = 3.0000000000000004 from being rounded up to 4.
    share = math.ceil(group.size * (1.0 - chosen["max_ratio"]) - 1e-9)
    least = min(max(chosen["minimum_units"], share, group.least), group.size)
    if chosen["multiple"] == "device":
        multiple = _relaxed(group.size, least, _in_units(group, alignment))
    else:
        multiple = _in_units(group, chosen["multiple"])
    multiple = math.lcm(multiple, group.multiple)
    multiple *= max(math.ceil(chosen["step"] * group.size / multiple - 1e-9), 1)
    rounded = Dimension(group.name, group.size, least, multiple).smallest
    return Dimension(group.name, group.size, rounded, multiple)


def _in_units(group: ChannelGroup, channels: int) -> int:
    """Return the fewest units whose channels in the producing layer are a multiple of ``channels``.

    >>> import numpy as np
    >>> from autoprune.network.groups import ParamSlice
    >>> rows = ParamSlice("conv.weight", 0, np.arange(12).reshape(3, 4))
    >>> _in_units(ChannelGroup("conv", 3, (rows,)), 8)
    2
    """
    named = [member for member in group.members if member.path.rpartition(".")[0] == group.name]
    # A producing layer's channels are the leading dimension of its weight, save transposed
    # convolutions, where the bias has them.
    producers = sorted(named or group.members, key=lambda member: member.dim)
    per_unit = producers[0].per_unit if producers else 1
    return channels // math.gcd(channels, per_unit)


def _relaxed(size: int, least: int, multiple: int) -> int:
    """Return ``multiple`` halved until the group has a choice of widths."""
    while multiple > 1 and len(Dimension("", size, least, multiple).widths) < _FEWEST_WIDTHS:
        multiple //= 2
    return multiple


def _droppable(block: Block, settings: SpaceSettings) -> bool:
    frozen = False
    for pattern, override in settings.blocks.items():
        if fnmatch.fnmatchcase(block.name, pattern):
            frozen = override.freeze
    return settings.depth and not frozen
