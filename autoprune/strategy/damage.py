"""What removing units and blocks is expected to cost, before any candidate is evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.errors import PruningError
from autoprune.strategy.space import Candidate, SearchSpace

#: A distance between answers costs this power of it: what sums to a log-loss is between the
#: distance and its square. A little more suits a ResNet-20, a little less a ResNet-56.
_POWER = 1.25


@dataclasses.dataclass(frozen=True, eq=False)
class Damage:
    """A prior of the loss: a curve per group and a number per block, summed over a candidate.

    Attributes:
        groups: For each group of the space the damage by kept units, ``curve[w]`` with w units,
            from none to all; 0 at full width, never rising with the width.
        blocks: Damage of dropping each block, at least 0; its groups then cost nothing.
    """

    groups: tuple[Float[np.ndarray, " _"], ...]
    blocks: Float[np.ndarray, " blocks"]

    @classmethod
    def of_scores(
        cls,
        space: SearchSpace,
        scores: Mapping[str, Float[np.ndarray, " _"]],
        *,
        cumulative: bool,
    ) -> Damage:
        """Return the damage when the units with the lowest scores go first.

        A dropped block costs what all units of the groups inside it do.

        Args:
            space: The search space.
            scores: One number per unit of every group.
            cumulative: The score of a unit is the damage once it and all lower ones are gone, as
                structured OBS gives it; else scores of the units that are gone are added up, each
                counted from 0.

        Raises:
            PruningError: A group has no score per unit.
        """
        followers = [member for members in space.parts for member in members]
        missing = [m.group for m in followers if len(scores.get(m.group, ())) != m.size]
        if missing:
            raise PruningError(f"no damage is known of {', '.join(missing[:5])}")
        curves = []
        for members in space.parts:
            total: Float[np.ndarray, " _"] | float = 0.0
            for member in members:
                gone = np.sort(np.maximum(scores[member.group].astype(float), 0.0))
                curve = np.append(0.0, gone if cumulative else np.cumsum(gone))
                # A step of a tie takes several units of the group.
                total = total + curve[::-1][:: member.units]
            curves.append(np.array(total))
        inside = space.inside or ((),) * len(space.blocks)
        blocks = [sum(float(curves[group][0]) for group in groups) for groups in inside]
        return cls(tuple(curves), np.array(blocks, float))

    def measured(
        self,
        space: SearchSpace,
        candidates: Sequence[Candidate],
        distances: Sequence[float],
    ) -> Damage:
        """Return the damage by which candidates cost what was measured of them.

        A curve keeps its shape. One that was not measured, or whose candidate costs nothing by the
        curve, gets the mean factor of those that were; so does a block.

        Args:
            space: The search space.
            candidates: Each narrows one group or drops one block, see :func:`probes`.
            distances: How far the answers of each are from the unpruned network's.
        """
        costs = np.power(np.asarray(distances, float), _POWER)
        widths, keep = space.widths(candidates), space.keep(candidates)
        groups, blocks = np.full(len(self.groups), np.nan), np.full(len(self.blocks), np.nan)
        for width, stays, cost in zip(widths, keep, costs, strict=True):
            if not stays.all():
                blocks[np.flatnonzero(~stays)] = cost
                continue
            for group in np.flatnonzero(width < space.sizes):
                before = self.groups[group][width[group]]
                groups[group] = cost / before if before > 0 else np.nan
        known = groups[np.isfinite(groups)]
        usual = float(known.mean()) if len(known) else 1.0
        groups = np.where(np.isnan(groups), usual, groups)
        return Damage(
            tuple(curve * factor for curve, factor in zip(self.groups, groups, strict=True)),
            np.where(np.isnan(blocks), usual * self.blocks, blocks),
        )

    @classmethod
    def quadratic(cls, space: SearchSpace) -> Damage:
        """Return the square of the ratio for every group, 1 for every block: nothing is known."""
        curves = [(np.arange(dim.size, -1, -1) / dim.size) ** 2 for dim in space.dimensions]
        return cls(tuple(curves), np.ones(len(space.blocks)))

    def at(
        self,
        space: SearchSpace,
        widths: Int[np.ndarray, "n groups"],
        keep: Bool[np.ndarray, "n blocks"],
    ) -> Float[np.ndarray, " n"]:
        """Return the summed damage of each candidate; groups in dropped blocks add nothing."""
        parts = np.stack([curve[widths[:, g]] for g, curve in enumerate(self.groups)], axis=1)
        total: Float[np.ndarray, " n"] = (parts * space.active(keep)).sum(axis=1)
        total = total + (~keep) @ self.blocks
        return total


def probes(space: SearchSpace) -> list[Candidate]:
    """Return for each searched group the candidate that halves it, for each block that without it.

    Half is meant of the way to the narrowest width; all else is whole.

    Args:
        space: The search space.
    """
    narrow = [group for group, dim in enumerate(space.dimensions) if dim.searched]
    gone = np.flatnonzero(space.droppable) if space.max_dropped != 0 else np.array([], int)
    count = len(narrow) + len(gone)
    widths = np.repeat(space.sizes[None], count, axis=0)
    keep = np.ones((count, len(space.blocks)), bool)
    middle = (space.sizes + space.smallest_widths) // 2
    # The narrowest but for what would be rounded up to all.
    middle = np.where(middle + space.multiples > space.sizes, space.smallest_widths, middle)
    widths[np.arange(len(narrow)), narrow] = middle[narrow]
    keep[len(narrow) + np.arange(len(gone)), gone] = False
    return space.candidates(widths, keep)


def neighbours(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return pairs of different groups, each once, sorted.

    >>> neighbours([(2, 1), (1, 2), (3, 3)])
    ((1, 2),)
    """
    return tuple(sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}))
