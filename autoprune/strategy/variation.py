"""Mutation and crossover of whole rows of candidates."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.strategy.levels import LevelGrid
from autoprune.strategy.space import SearchSpace


def mutated(
    space: SearchSpace,
    grid: LevelGrid,
    ratios: Float[np.ndarray, "n groups"],
    dropped: Bool[np.ndarray, "n blocks"],
    rng: np.random.Generator,
    *,
    probability: float,
) -> tuple[Float[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
    """Return candidates in which every gene is replaced by another with a probability.

    A gene is the level of a group, replaced by any other of its levels with equal probability, or
    a droppable block. To be dropped is as one level more for a block: a dropped one comes back with
    the full probability, a kept one goes with that over the number of levels. Groups of a block
    that comes back have no level that could be kept; theirs is drawn from all.

    Args:
        space: The search space.
        grid: Levels of its groups.
        ratios: Fraction removed per group.
        dropped: Whether each block is dropped.
        rng: Source of randomness.
        probability: That of each gene.
    """
    level = grid.nearest(np.rint(space.sizes * (1.0 - ratios)).astype(np.int64))
    hit = rng.random(ratios.shape) < probability
    # With a single level nothing else can be drawn.
    others = np.maximum(grid.counts - 1, 1)
    other = (level + 1 + rng.integers(0, others, ratios.shape)) % grid.counts
    free = np.array(space.droppable, bool)
    leaving = probability / grid.widths.shape[1]
    flips = free & (rng.random(dropped.shape) < np.where(dropped, probability, leaving))
    gone = dropped ^ flips
    back = ~space.active(~dropped) & space.active(~gone)
    drawn = rng.integers(0, grid.counts, ratios.shape)
    new = np.where(back, drawn, other)
    widths = grid.widths[np.arange(len(space.sizes)), new]
    changed = back | (hit & (other != level))
    return np.where(changed, 1.0 - widths / space.sizes, ratios), gone


def crossed(
    space: SearchSpace,
    first: tuple[Float[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]],
    second: tuple[Float[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
    """Return children that take each gene from either parent with equal probability.

    A block and the groups inside it come from the same parent: without its block a ratio means
    nothing.

    Args:
        space: The search space.
        first: Ratios and dropped blocks of the first parents.
        second: Those of the second parents, row by row.
        rng: Source of randomness.
    """
    blocks = len(space.blocks)
    owner = linkage(space)
    take = rng.random((len(first[0]), blocks + len(space.sizes))) < 0.5
    return (
        np.where(take[:, owner], first[0], second[0]),
        np.where(take[:, :blocks], first[1], second[1]),
    )


def linkage(space: SearchSpace) -> Int[np.ndarray, " groups"]:
    """Return the place that decides over each group: its innermost block's index, or its own.

    A group's own place is the number of blocks plus its index.
    """
    owner = len(space.blocks) + np.arange(len(space.sizes))
    # Blocks with many groups first, so that the smallest block that holds a group stays.
    for block in sorted(range(len(space.inside)), key=lambda b: -len(space.inside[b])):
        owner[list(space.inside[block])] = block
    return owner
