"""Random candidates that cover the whole range of latencies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.strategy.budget import Points, first_within, project
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate


def random_candidate(problem: Problem, rng: np.random.Generator) -> Candidate:
    """Return a candidate on a random ray, at a random latency.

    The direction is uniform per group, the latency uniform between the fastest candidate's and
    the budget (without one, the unpruned network's), and a uniform number of blocks, drawn at
    random, is dropped. The ray is followed from the unpruned network to the first point that is
    fast enough, so nothing is rejected, tight budgets cost no more than loose ones, and candidates
    do not crowd where independent ratios average out.
    """
    space = problem.space
    floor = problem.fastest[1]
    top = problem.dense_ms if problem.budget_ms is None else problem.budget_ms
    target = float(rng.uniform(floor, max(min(top, problem.dense_ms), floor)))
    direction = rng.uniform(size=len(space.dimensions))
    droppable = np.flatnonzero(space.droppable)
    most = len(droppable) if space.max_dropped is None else space.max_dropped
    count = int(rng.integers(0, min(most, len(droppable)), endpoint=True))
    dropped = np.zeros(len(space.blocks), bool)
    dropped[rng.choice(droppable, size=count, replace=False)] = True
    largest = 1.0 - space.smallest_widths / space.sizes

    def ray(positions: Float[np.ndarray, " n"]) -> Points:
        # Strength 0 is the unpruned end, 1 (halfway) the direction itself, infinity the other end.
        with np.errstate(divide="ignore"):
            strength = positions / (1.0 - positions)
        ratios = np.minimum(strength[:, None] * direction, 1.0) * largest
        return space.realise(ratios, np.repeat(dropped[None], len(positions), axis=0))

    found = first_within(problem, ray, target) or ray(np.ones(1))
    # The end of the ray may still be too slow; and coarse steps leave latency unused.
    return project(problem, space.candidates(*found)[0], budget_ms=target)
