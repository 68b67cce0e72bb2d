"""The few widths of each group that are worth choosing from: right edges of latency plateaus."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.strategy.problem import Problem
from autoprune.strategy.space import SearchSpace

#: Most levels of a group.
MOST_LEVELS = 16

#: Latencies that differ by less, relative to the unpruned network's, are on one plateau.
_SAME = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class LevelGrid:
    """The levels of every group, widest first; level 0 is the full width.

    Attributes:
        widths: Units at each level; groups with fewer levels repeat their narrowest.
        counts: Levels of each group, at least 1.
    """

    widths: Int[np.ndarray, "groups levels"]
    counts: Int[np.ndarray, " groups"]

    @property
    def valid(self) -> Bool[np.ndarray, "groups levels"]:
        """Which entries of ``widths`` are levels and no repetitions."""
        found: Bool[np.ndarray, "groups levels"] = (
            np.arange(self.widths.shape[1]) < self.counts[:, None]
        )
        return found

    def nearest(self, widths: Int[np.ndarray, "n groups"]) -> Int[np.ndarray, "n groups"]:
        """Return the level nearest to each width, the wider one of two that are equally near."""
        distance = np.abs(widths[:, :, None] - self.widths[None])
        # Repetitions come after what they repeat, and the first of equals is taken.
        level: Int[np.ndarray, "n groups"] = np.argmin(distance, axis=2)
        return level

    @classmethod
    def of(cls, levels: list[Int[np.ndarray, " _"]]) -> LevelGrid:
        """Return the grid with these widths per group, widest first."""
        counts = np.array([len(widths) for widths in levels], np.int64)
        most = int(counts.max(initial=1))
        rows = [np.append(w, np.repeat(w[-1:], most - len(w))) for w in levels]
        return cls(np.array(rows, np.int64).reshape(len(levels), most), counts)


def plateau_levels(problem: Problem, *, most: int = MOST_LEVELS) -> LevelGrid:
    """Return the widths that are worth choosing from.

    A width is an edge if every wider one of its group is slower, the other groups being at full
    width or at half. Full and narrowest widths always are levels. Of too many edges evenly spaced
    ones stay.

    Args:
        problem: Space and latency.
        most: Most levels of a group, at least 2.
    """
    space = problem.space
    edges = [np.zeros(len(dim.widths), bool) for dim in space.dimensions]
    for share in (0.0, 0.5):
        for found, more in zip(edges, _edges(problem, share), strict=True):
            found |= more
    levels = []
    for dim, edge in zip(space.dimensions, edges, strict=True):
        edge[[0, -1]] = True
        places = np.flatnonzero(edge)
        if len(places) > most:
            places = places[np.linspace(0, len(places) - 1, most).round().astype(np.int64)]
        levels.append(dim.widths[places][::-1])
    return LevelGrid.of(levels)


def _edges(problem: Problem, share: float) -> list[Bool[np.ndarray, " _"]]:
    """Return which widths of each group are faster than every wider one."""
    space = problem.space
    base = _at(space, share)
    rows = []
    for group, dim in enumerate(space.dimensions):
        widths = np.repeat(base, len(dim.widths), axis=0)
        widths[:, group] = dim.widths
        rows.append(widths)
    if not rows:
        return []
    stacked = np.concatenate(rows)
    ms = problem.predict(stacked, np.ones((len(stacked), len(space.blocks)), bool))
    ends = np.cumsum([len(widths) for widths in rows])[:-1]
    slack = _SAME * problem.dense_ms
    return [_faster_than_wider(part, slack) for part in np.split(ms, ends)]


def _at(space: SearchSpace, share: float) -> Int[np.ndarray, "1 groups"]:
    ratios = np.minimum(share, 1.0 - space.smallest_widths / space.sizes)
    return space.realise(ratios[None], np.zeros((1, len(space.blocks)), bool))[0]


def _faster_than_wider(ms: Float[np.ndarray, " n"], slack: float) -> Bool[np.ndarray, " n"]:
    """Return which entries are below all later ones.

    >>> _faster_than_wider(np.array([1.0, 1.0, 3.0, 2.0, 4.0]), 0.0).tolist()
    [False, True, False, True, True]
    """
    least = np.minimum.accumulate(np.append(ms, np.inf)[::-1])[::-1][1:]
    below: Bool[np.ndarray, " n"] = ms < least - slack
    return below
