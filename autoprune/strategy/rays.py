"""Random candidates that cover the whole range of latencies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from autoprune.strategy.budget import Points, first_within, project
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate


def random_candidate(
    problem: Problem, rng: np.random.Generator, *, target_ms: float | None = None
) -> Candidate:
    """Return a candidate on a random ray, at a random latency.

    The direction is uniform per group, the latency uniform between the fastest candidate's and
    the budget (without one, the unpruned network's), and a uniform number of blocks, drawn at
    random, is dropped. The ray is followed from the unpruned network to the first point that is
    fast enough, so nothing is rejected, tight budgets cost no more than loose ones, and candidates
    do not crowd where independent ratios average out.

    Args:
        problem: Space, latency and budget.
        rng: Source of randomness.
        target_ms: A latency to use instead of a random one, in ms.
    """
    space = problem.space
    target = target_ms
    if target is None:
        floor = problem.fastest[1]
        top = problem.dense_ms if problem.budget_ms is None else problem.budget_ms
        target = float(rng.uniform(floor, max(min(top, problem.dense_ms), floor)))
    direction = rng.uniform(size=len(space.dimensions))
    droppable = np.flatnonzero(space.droppable)
    most = len(droppable) if space.max_dropped is None else space.max_dropped
    count = int(rng.integers(0, min(most, len(droppable)), endpoint=True))
    dropped = np.zeros(len(space.blocks), bool)
    dropped[rng.choice(droppable, size=count, replace=False)] = True
    return on_ray(problem, direction, dropped, target)


def on_ray(
    problem: Problem,
    direction: Float[np.ndarray, " groups"],
    dropped: Bool[np.ndarray, " blocks"],
    target_ms: float,
) -> Candidate:
    """Return the first candidate of a ray that is fast enough.

    Args:
        problem: Space and latency.
        direction: At least 0 per group; ratios are in this proportion, as parts of the largest
            ratios, until they reach those.
        dropped: Blocks that go.
        target_ms: Latency to meet; where the ray does not,
            :func:`~autoprune.strategy.budget.project` goes on from its end.
    """
    space = problem.space
    largest = 1.0 - space.smallest_widths / space.sizes

    def ray(positions: Float[np.ndarray, " n"]) -> Points:
        # Strength 0 is the unpruned end, 1 (halfway) the direction itself, infinity the other end.
        with np.errstate(divide="ignore"):
            strength = positions / (1.0 - positions)
        # What is not in the direction stays whole however far the ray goes.
        grown = np.where(direction > 0, strength[:, None] * np.maximum(direction, 1e-12), 0.0)
        ratios = np.minimum(grown, 1.0) * largest
        return space.realise(ratios, np.repeat(dropped[None], len(positions), axis=0))

    found = first_within(problem, ray, target_ms) or ray(np.ones(1))
    # The end of the ray may still be too slow; and coarse steps leave latency unused.
    return project(problem, space.candidates(*found)[0], budget_ms=target_ms)
