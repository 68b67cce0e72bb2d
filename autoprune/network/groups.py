"""The units that can go: coupled channels and removable blocks. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class ParamSlice:
    """The places in one dimension of one parameter or buffer that a group's units occupy.

    Attributes:
        path: Dotted parameter or buffer name.
        dim: Dimension that is cut.
        indices: ``indices[u]`` are the positions that go when unit ``u`` goes.
    """

    path: str
    dim: int
    indices: Int[np.ndarray, "units per_unit"]

    @property
    def per_unit(self) -> int:
        """How many positions one unit occupies here."""
        return int(self.indices.shape[1])

    @property
    def contiguous(self) -> bool:
        """Whether the positions of each unit follow each other."""
        return bool((np.diff(self.indices, axis=1) == 1).all())


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A whole-number attribute of a module that says how wide something is.

    Attributes:
        attribute: Dotted path of the attribute, ``"blocks.0.attn.num_heads"``; an item of a tuple
            or list has its index behind, ``"blocks.0.split_sizes[2]"``.
        value: Its value in the unpruned network.
        per_unit: How much it shrinks with each unit that goes.
    """

    attribute: str
    value: int
    per_unit: int


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that live and die together, unit by unit.

    Attributes:
        name: Stable name: the module path of the first layer that produces it.
        size: Number of units.
        members: Every parameter dimension the units occupy.
        kind: ``"channel"``, ``"head"`` or ``"expert"``.
        mixed: A normalisation or a router mixes the units, so cutting differs from zeroing.
        mirrors: Attributes that must follow the width, found by trial cuts.
        least: Fewest units that must stay: a router picks that many experts.
        multiple: The number of units that stay is a multiple of this, or all of them: an operator
            reads rows of whole memory words only.
    """

    name: str
    size: int
    members: tuple[ParamSlice, ...]
    kind: str = "channel"
    mixed: bool = False
    mirrors: tuple[Mirror, ...] = ()
    least: int = 1
    multiple: int = 1

    def allows(self, width: int) -> bool:
        """Return whether so many units may stay."""
        return width == self.size or (
            self.least <= width < self.size and width % self.multiple == 0
        )


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual module that can be replaced by the identity.

    Attributes:
        name: Its module path.
        groups: Names of the groups that live wholly inside it.
    """

    name: str
    groups: tuple[str, ...] = ()


def kept_positions(
    size: int, slices: Sequence[tuple[ParamSlice, Int[np.ndarray, " _"]]]
) -> Int[np.ndarray, " positions"]:
    """Return the sorted positions that stay in a dimension of ``size``.

    Args:
        size: Full extent of the dimension.
        slices: For every group that cuts it, its slice and the units it keeps.
    """
    keep = np.ones(size, bool)
    for member, kept in slices:
        gone = np.ones(len(member.indices), bool)
        gone[kept] = False
        keep[member.indices[gone].ravel()] = False
    return np.flatnonzero(keep)
