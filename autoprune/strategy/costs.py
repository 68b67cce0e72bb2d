"""What a candidate is expected to cost, as tables: per level, per pair of levels, per block."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.strategy.damage import Damage
from autoprune.strategy.levels import LevelGrid
from autoprune.strategy.space import SearchSpace


@dataclasses.dataclass(frozen=True, eq=False)
class Costs:
    """Several cost functions on one level grid, told apart by their first axis.

    The cost of a candidate is the sum over groups, pairs of groups and dropped blocks. A group
    inside a dropped block adds nothing, neither alone nor in pairs.

    Attributes:
        groups: Cost of each group at each level; repeated levels are not read.
        blocks: Cost of dropping each block.
        edges: Indices of the two groups of every pair.
        pairs: Cost of each pair, by the level of its first and of its second group.
    """

    groups: Float[np.ndarray, "draws groups levels"]
    blocks: Float[np.ndarray, "draws blocks"]
    edges: Int[np.ndarray, "edges 2"]
    pairs: Float[np.ndarray, "draws edges levels levels"]

    @classmethod
    def of_damage(cls, grid: LevelGrid, damage: Damage) -> Costs:
        """Return the costs of a damage: its curves at the levels, its blocks, no pairs."""
        rows = [curve[w] for curve, w in zip(damage.groups, grid.widths, strict=True)]
        levels = grid.widths.shape[1]
        return cls(
            np.array(rows, float).reshape(1, len(rows), levels),
            np.asarray(damage.blocks, float)[None],
            np.zeros((0, 2), np.int64),
            np.zeros((1, 0, levels, levels)),
        )

    @property
    def scale(self) -> Float[np.ndarray, " draws"]:
        """The largest single cost of each function, at least the smallest positive number."""
        draws = len(self.groups)
        tables = [
            np.abs(table).reshape(draws, -1).max(axis=1, initial=0.0)
            for table in (self.groups, self.blocks, self.pairs)
        ]
        largest: Float[np.ndarray, " draws"] = np.maximum(np.max(tables, axis=0), 1e-300)
        return largest

    def at(
        self,
        space: SearchSpace,
        levels: Int[np.ndarray, "n groups"],
        keep: Bool[np.ndarray, "n blocks"],
        draw: Int[np.ndarray, " n"],
    ) -> Float[np.ndarray, " n"]:
        """Return the cost of each candidate under the function that ``draw`` names."""
        active = space.active(keep)
        groups, count = self.groups.shape[1:]
        place = levels + count * (np.arange(groups) + groups * draw[:, None])
        total = (self.groups.ravel().take(place) * active).sum(axis=1)
        total += (~keep * self.blocks[draw]).sum(axis=1)
        if len(self.edges):
            a, b = self.edges.T
            place = (np.arange(len(a)) + len(a) * draw[:, None]) * count**2
            place += count * levels[:, a] + levels[:, b]
            meet = self.pairs.ravel().take(place)
            total += (meet * (active[:, a] & active[:, b])).sum(axis=1)
        result: Float[np.ndarray, " n"] = total
        return result

    def tables(
        self,
        space: SearchSpace,
        levels: Int[np.ndarray, "n groups"],
        keep: Bool[np.ndarray, "n blocks"],
        draw: Int[np.ndarray, " n"],
    ) -> Float[np.ndarray, "n groups levels"]:
        """Return what each group costs at each level, alone and with the others where they are."""
        cost: Float[np.ndarray, "n groups levels"] = self.groups[draw]
        if len(self.edges):
            active = space.active(keep)
            target, other, starts, table = self._directed
            meet = table[draw[:, None], np.arange(len(other)), levels[:, other]]
            meet *= active[:, other, None]
            cost[:, target[starts]] += np.add.reduceat(meet, starts, axis=1)
        return cost

    @cached_property
    def _directed(
        self,
    ) -> tuple[
        Int[np.ndarray, " twice"],
        Int[np.ndarray, " twice"],
        Int[np.ndarray, " targets"],
        Float[np.ndarray, "draws twice others targets_levels"],
    ]:
        """Return both directions of every pair, sorted by the group that is looked at.

        These are that group, its partner, where each group's entries start, and the tables with
        the partner's level before the group's.
        """
        target, other = np.concatenate([self.edges, self.edges[:, ::-1]]).T
        tables = np.concatenate([self.pairs.swapaxes(2, 3), self.pairs], axis=1)
        order = np.argsort(target, kind="stable")
        target, other = target[order], other[order]
        starts = np.flatnonzero(np.append(True, np.diff(target) != 0))
        return target, other, starts, np.ascontiguousarray(tables[:, order])
