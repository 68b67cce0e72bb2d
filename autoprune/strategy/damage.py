"""What removing units and blocks is expected to cost, before any candidate is evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.errors import PruningError
from autoprune.strategy.space import SearchSpace


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
        blocks: Mapping[str, float],
        *,
        cumulative: bool,
    ) -> Damage:
        """Return the damage when the units with the lowest scores go first.

        A dropped block costs what was measured of it, or all units of the groups inside it.

        Args:
            space: The search space.
            scores: One number per unit of every group.
            blocks: In the same unit, the damage of dropping each block, as far as it was measured.
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
        values = [
            max(blocks.get(name, sum(float(curves[group][0]) for group in groups)), 0.0)
            for name, groups in zip(space.blocks, inside, strict=True)
        ]
        return cls(tuple(curves), np.array(values, float))

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


def neighbours(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return pairs of different groups, each once, sorted.

    >>> neighbours([(2, 1), (1, 2), (3, 3)])
    ((1, 2),)
    """
    return tuple(sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}))
