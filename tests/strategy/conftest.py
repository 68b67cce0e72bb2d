import dataclasses
import itertools

import numpy as np
import pytest

from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate, Dimension, SearchSpace


@dataclasses.dataclass(frozen=True)
class TableLatency:
    """Latency read from tables: one per group, one per pair of groups, one number per block."""

    space: SearchSpace
    groups: tuple[np.ndarray, ...]
    pairs: tuple[np.ndarray, ...]
    blocks: np.ndarray

    def __call__(self, widths, keep):
        total = 1.0 + (self.blocks * keep).sum(axis=1)
        outside = self.space.active(keep)
        level = [
            np.searchsorted(dim.widths, widths[:, index])
            for index, dim in enumerate(self.space.dimensions)
        ]
        for index, table in enumerate(self.groups):
            total = total + table[level[index]] * outside[:, index]
        for (a, b), table in zip(
            itertools.combinations(range(len(self.groups)), 2), self.pairs, strict=True
        ):
            total = total + table[level[a], level[b]] * outside[:, a] * outside[:, b]
        return total


def random_problem(rng, *, monotone, coupled=True):
    """Return a small random problem: staircases with plateaus, and falling steps if asked for."""
    count, blocks = int(rng.integers(1, 5)), int(rng.integers(0, 4))
    dimensions = []
    for index in range(count):
        multiple = int(rng.integers(1, 5))
        size = multiple * int(rng.integers(1, 5)) + int(rng.integers(0, multiple))
        minimum = int(rng.integers(1, size + 1))
        dimensions.append(Dimension(f"g{index}", size, minimum, multiple))
    space = SearchSpace(
        tuple(dimensions),
        tuple(f"b{index}" for index in range(blocks)),
        tuple((rng.uniform(size=blocks) < 0.8).tolist()),
        tuple((int(rng.integers(0, count)),) for _ in range(blocks)),
        int(rng.integers(0, blocks + 1)),
    )

    def staircase(*shape):
        # Repeated values make plateaus.
        table = rng.integers(0, 4, shape).astype(float) * 0.5
        for axis in range(len(shape) if monotone else 0):
            table = np.cumsum(table, axis=axis)
        return table

    levels = [len(dim.widths) for dim in dimensions]
    pairs = [
        staircase(a, b) * (0.3 if coupled else 0.0) for a, b in itertools.combinations(levels, 2)
    ]
    latency = TableLatency(
        space,
        tuple(staircase(level) for level in levels),
        tuple(pairs),
        rng.integers(0, 4, blocks) * 0.7,
    )
    return Problem(space, latency)


def every_candidate(space):
    """Return every distinct candidate of a small space."""
    widths = itertools.product(*(dim.widths.tolist() for dim in space.dimensions))
    flags = list(itertools.product(*([False, True] for _ in space.blocks)))
    found = {}
    for row in widths:
        ratios = tuple(1.0 - w / dim.size for w, dim in zip(row, space.dimensions, strict=True))
        for dropped in flags:
            found[space.snap(Candidate(ratios, dropped))] = None
    return list(found)


@pytest.fixture
def problems():
    """Return ``(count, monotone, coupled) -> problems``, always the same ones."""

    def make(count, *, monotone, coupled=True):
        rng = np.random.default_rng(7)
        return [random_problem(rng, monotone=monotone, coupled=coupled) for _ in range(count)]

    return make


@pytest.fixture
def enumerate_all():
    """Return the function that lists every distinct candidate of a small space."""
    return every_candidate
