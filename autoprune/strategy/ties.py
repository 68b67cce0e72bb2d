"""Groups that share one ratio: which they are, and the grid of widths that fits them all."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Sequence

from autoprune.errors import SettingsError
from autoprune.network.groups import ChannelGroup

#: A number that is one part of a dotted path: the index of a layer in a list.
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclasses.dataclass(frozen=True)
class Member:
    """A channel group of the network as a part of one dimension of the search space.

    Attributes:
        index: Its place among the network's groups.
        group: Its name.
        size: Its full width in units.
        units: How many of its units go with one unit of the dimension.
    """

    index: int
    group: str
    size: int
    units: int = 1


@dataclasses.dataclass(frozen=True)
class Grid:
    """Widths, in units of the group that has them.

    Attributes:
        size: Full width.
        minimum: Fewest units that stay.
        multiple: Kept units are a multiple of this, or the full size.
    """

    size: int
    minimum: int
    multiple: int


def tied(
    groups: Sequence[ChannelGroup], patterns: Sequence[str], *, isomorphic: bool
) -> dict[str, tuple[int, ...]]:
    """Return the ties by name: indices of two or more groups that share one ratio.

    Args:
        groups: The network's groups.
        patterns: Shell patterns; the groups that match one are tied.
        isomorphic: Tie what is left where it has the same structure: the same layers but for the
            numbers in their names, of the same size.

    Raises:
        SettingsError: A group matches several patterns.
    """
    ties: dict[str, tuple[int, ...]] = {}
    taken: dict[int, str] = {}
    faults = []
    for pattern in patterns:
        matching = [i for i, g in enumerate(groups) if fnmatch.fnmatchcase(g.name, pattern)]
        for index in matching:
            if taken.setdefault(index, pattern) != pattern:
                faults.append(
                    f"  ties: group {groups[index].name!r} matches both {taken[index]!r} and "
                    f"{pattern!r}; it can be in one tie"
                )
        ties[pattern] = tuple(matching)
    if faults:
        raise SettingsError("\n".join(["search space does not fit the network:", *faults]))
    if isomorphic:
        alike: dict[object, list[int]] = {}
        for index, group in enumerate(groups):
            if index not in taken:
                alike.setdefault(_structure(group), []).append(index)
        for indices in alike.values():
            ties[groups[indices[0]].name] = tuple(indices)
    return {name: indices for name, indices in ties.items() if len(indices) > 1}


def shared_grid(grids: Sequence[Grid]) -> Grid:
    """Return the grid of a tie, in steps that are whole units of every one of its groups.

    Widths are in proportion: the full size of the shared grid is the greatest common divisor of the
    sizes, and what it allows is allowed by each grid.

    >>> shared_grid([Grid(64, 8, 8), Grid(128, 8, 8)])
    Grid(size=64, minimum=8, multiple=8)
    >>> shared_grid([Grid(64, 8, 8), Grid(96, 8, 8)])
    Grid(size=32, minimum=4, multiple=8)
    """
    size = math.gcd(*(grid.size for grid in grids))
    minimum, multiple = 1, 1
    for grid in grids:
        units = grid.size // size
        minimum = max(minimum, -(-grid.minimum // units))
        multiple = math.lcm(multiple, grid.multiple // math.gcd(grid.multiple, units))
    return Grid(size, minimum, multiple)


def _structure(group: ChannelGroup) -> object:
    """Return something equal for groups of the same structure.

    >>> _NUMBER.sub("*", "layer1.0.conv1.weight")
    'layer1.*.conv1.weight'
    """
    members = [(_NUMBER.sub("*", m.path), m.dim, m.per_unit) for m in group.members]
    return group.kind, group.size, tuple(sorted(members))
