"""Single steps in a search space, as arrays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from autoprune.strategy.space import Candidate, SearchSpace


def shifted(
    space: SearchSpace, widths: Int[np.ndarray, " groups"], levels: int
) -> Int[np.ndarray, " groups"]:
    """Return the widths that many grid steps wider (narrower if negative), inside the grid.

    A full width that is no multiple is the grid's last step.
    """
    if levels >= 0:
        # From below, a multiple beyond the full width means the full width.
        wider: Int[np.ndarray, " groups"] = np.minimum(
            widths + levels * space.multiples, space.sizes
        )
        return wider
    # From a full width between two multiples the first step down is to the multiple below.
    above = -(-widths // space.multiples) * space.multiples
    narrower: Int[np.ndarray, " groups"] = np.maximum(
        above + levels * space.multiples, space.smallest_widths
    )
    return narrower


def single_moves(
    space: SearchSpace,
    widths: Int[np.ndarray, " groups"],
    *,
    bound: Int[np.ndarray, " groups"],
    allowed: Bool[np.ndarray, " groups"],
) -> tuple[Int[np.ndarray, " moves"], Int[np.ndarray, " moves"]]:
    """Return moves of one group each towards ``bound``, by 1, 2, 4, ... grid steps and all the way.

    Args:
        space: The search space.
        widths: Where the moves start, on the grid.
        bound: Width no move goes beyond, on the grid, for each group.
        allowed: Which groups move.

    Returns:
        The group that each move changes, and its new width in units.
    """
    towards = np.where(bound > widths, 1, -1)
    groups, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    step, previous = 1, widths
    movable = allowed & (bound != widths)
    while movable.any():
        up = np.minimum(shifted(space, widths, step), bound)
        down = np.maximum(shifted(space, widths, -step), bound)
        target = np.where(towards > 0, up, down)
        movable &= target != previous
        groups.append(np.flatnonzero(movable))
        targets.append(target[movable])
        step, previous = step * 2, target
    return np.concatenate(groups), np.concatenate(targets)


def with_moves(
    widths: Int[np.ndarray, " groups"],
    groups: Int[np.ndarray, " moves"],
    targets: Int[np.ndarray, " moves"],
) -> Int[np.ndarray, "moves groups"]:
    """Return one width vector per move, each with that move alone applied."""
    rows = np.repeat(widths[None], len(groups), axis=0)
    rows[np.arange(len(groups)), groups] = targets
    return rows


def neighbour(
    space: SearchSpace, candidate: Candidate, rng: np.random.Generator, *, moves: int = 1
) -> Candidate:
    """Return a snapped candidate a few random steps away.

    Args:
        space: The search space.
        candidate: Where to start.
        rng: Source of randomness.
        moves: How many groups or blocks change; a group goes one or a few widths up or down, a
            block is dropped or put back.
    """
    widths, keep = space.widths([candidate])[0], space.keep([candidate])[0]
    active = space.active(keep[None])[0] & (space.smallest_widths < space.sizes)
    groups = np.flatnonzero(active)
    blocks = np.flatnonzero(space.droppable)
    places = np.concatenate([groups, len(widths) + blocks])
    chosen = rng.choice(places, size=min(moves, len(places)), replace=False)
    for place in chosen:
        if place >= len(widths):
            keep[place - len(widths)] ^= True
            continue
        levels = int(rng.geometric(0.5)) * int(rng.choice([-1, 1]))
        # A step off the end of the grid turns round.
        for move in (levels, -levels):
            target = shifted(space, widths, move)[place]
            if target != widths[place]:
                widths[place] = target
                break
    return space.candidates(widths[None], keep[None])[0]
