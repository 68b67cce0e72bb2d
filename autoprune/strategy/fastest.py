"""The fastest candidate of a search space, by descent on the exact latency."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.strategy.moves import single_moves, with_moves
from autoprune.strategy.space import SearchSpace


def search_fastest(
    space: SearchSpace,
    latency: Callable[
        [Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]], Float[np.ndarray, " n"]
    ],
) -> tuple[Int[np.ndarray, "1 groups"], Bool[np.ndarray, "1 blocks"]]:
    """Return the widths and kept blocks of the fastest candidate that descent finds.

    It starts with every group at its narrowest and takes the best of all single changes (a block
    dropped, put back or exchanged for another, a group at another width) until none helps. Where
    narrower is never slower and the blocks' savings add up, that is the fastest candidate of all.

    Args:
        space: The search space.
        latency: Kept units and kept blocks to ms.
    """
    widths = space.smallest_widths.copy()
    keep = np.ones(len(space.blocks), bool)
    best = float(latency(*_realised(space, widths[None], keep[None]))[0])
    # Every round is strictly faster, so this ends; the bound only guards against long tails.
    for _ in range(4 * (len(widths) + len(keep)) + 16):
        rows, kept = _changes(space, widths, keep)
        if not len(rows):
            break
        ms = latency(*_realised(space, rows, kept))
        choice = int(np.argmin(ms))
        # Differences in the last digits are noise of the summation, not progress.
        if not ms[choice] < best * (1.0 - 1e-12):
            break
        widths, keep, best = rows[choice], kept[choice], float(ms[choice])
    return _realised(space, widths[None], keep[None])


def _realised(
    space: SearchSpace, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
    """Return the unique form; the descent itself remembers widths inside dropped blocks."""
    return space.realise(1.0 - widths / space.sizes, ~keep)


def _changes(
    space: SearchSpace, widths: Int[np.ndarray, " groups"], keep: Bool[np.ndarray, " blocks"]
) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
    active = space.active(keep[None])[0]
    moved = [
        with_moves(widths, *single_moves(space, widths, bound=bound, allowed=active))
        for bound in (space.smallest_widths, space.sizes)
    ]
    rows = np.concatenate(moved)
    kept = np.repeat(keep[None], len(rows), axis=0)
    other = _block_changes(space, keep)
    return (
        np.concatenate([rows, np.repeat(widths[None], len(other), axis=0)]),
        np.concatenate([kept, other]),
    )


def _block_changes(
    space: SearchSpace, keep: Bool[np.ndarray, " blocks"]
) -> Bool[np.ndarray, "n blocks"]:
    """Return every way to drop one block, put one back, or exchange two."""
    droppable = np.array(space.droppable, bool)
    gone, staying = np.flatnonzero(~keep), np.flatnonzero(keep & droppable)
    limit = len(keep) if space.max_dropped is None else space.max_dropped
    # -1 stands for no block on that side of the exchange.
    returns = np.append(gone, -1)
    leaves = np.append(staying, -1)
    rows = []
    for back in returns:
        for out in leaves:
            changed = keep.copy()
            if back >= 0:
                changed[back] = True
            if out >= 0:
                changed[out] = False
            if (~changed).sum() <= limit and not (back < 0 and out < 0):
                rows.append(changed)
    return np.array(rows, bool).reshape(len(rows), len(keep))
