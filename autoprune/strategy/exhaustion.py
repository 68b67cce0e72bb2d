"""Small search spaces as a whole: every candidate that a search can end at."""

from __future__ import annotations

import itertools
import math

from autoprune.strategy.budget import project
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate

#: Spaces of more candidates are not listed.
MOST = 512


def every_candidate(problem: Problem) -> tuple[Candidate, ...] | None:
    """Return all candidates within the budget and limits, ``None`` where they are too many.

    Of those that lie on one plateau of the latency only the widest counts, as in
    :func:`~autoprune.strategy.budget.project`: a narrower one is no faster.

    Where other costs than the latency are minimised nothing is listed: they rank what lies on one
    plateau.

    Args:
        problem: Space, latency, budget and limits.

    Raises:
        BudgetError: No candidate meets the budget.
    """
    space = problem.space
    ratios = [[1.0 - width / dim.size for width in dim.widths] for dim in space.dimensions]
    flags = [[False, True] if droppable else [False] for droppable in space.droppable]
    if problem.costs or math.prod(map(len, [*ratios, *flags])) > MOST:
        return None
    found = {
        space.snap(Candidate(tuple(row), tuple(gone))): None
        for row in itertools.product(*ratios)
        for gone in itertools.product(*flags)
    }
    within = {space.snap(project(problem, candidate)): None for candidate in found}
    return tuple(within)
