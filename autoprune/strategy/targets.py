"""Which latency a trial aims at, and how a candidate gets there."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.strategy.budget import widen
from autoprune.strategy.problem import Problem
from autoprune.strategy.rays import on_ray, random_candidate
from autoprune.strategy.space import Candidate

#: The golden ratio's fraction: multiples of it leave no large gap between 0 and 1.
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0

#: Guesses along each ray before the best of them is taken.
_GUESSES = 5


def target_ms(problem: Problem, number: int) -> float:
    """Return the latency in ms that a trial aims at.

    With a budget that is the budget. Without one it moves through the range from the fastest
    candidate to the unpruned network, even in the logarithm: any run of trials covers it
    (Kronecker's sequence with the golden ratio).

    Args:
        problem: Latency and budget.
        number: The trial's number.
    """
    if problem.budget_ms is not None:
        return problem.budget_ms
    floor = problem.fastest[1]
    top = max(problem.dense_ms, floor)
    share = (number + 1) * _GOLDEN % 1.0
    return float(np.clip(floor * (top / floor) ** share, floor, top))


def reach(problem: Problem, candidate: Candidate, limit_ms: float) -> Candidate:
    """Return a candidate scaled to a latency from either side, and widened where some is left.

    The ratios of all groups keep their proportion, as parts of the largest ratios, as far as those
    allow.

    Args:
        problem: Space and latency.
        candidate: Any ratios and drops.
        limit_ms: Latency in ms.

    Raises:
        BudgetError: No candidate is as fast.
    """
    space = problem.space
    dropped = np.array(candidate.dropped, bool)
    direction = directions(problem, np.array([candidate.ratios], float))[0]
    found = on_ray(problem, direction, dropped, limit_ms)
    keep = space.keep([found])
    return space.candidates(widen(problem, space.widths([found]), keep, limit_ms), keep)[0]


def directions(
    problem: Problem, ratios: Float[np.ndarray, "n groups"]
) -> Float[np.ndarray, "n groups"]:
    """Return ratios as parts of each group's largest; 0 for groups that are not searched."""
    largest = 1.0 - problem.space.smallest_widths / problem.space.sizes
    parts: Float[np.ndarray, "n groups"] = np.divide(
        ratios, largest, out=np.zeros_like(ratios), where=largest > 0
    )
    return parts


def reach_rows(
    problem: Problem,
    parts: Float[np.ndarray, "n groups"],
    dropped: Bool[np.ndarray, "n blocks"],
    limit_ms: float,
) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"], Bool[np.ndarray, " n"]]:
    """Return many candidates scaled to about a latency, by false position along their rays.

    Args:
        problem: Space and latency.
        parts: Ratios as parts of the largest.
        dropped: Blocks that go.
        limit_ms: Latency in ms.

    Returns:
        Kept units and kept blocks, and whether the candidate meets the latency; where no point of
        its ray was found to, the candidate is the ray's end.
    """
    space = problem.space
    largest = 1.0 - space.smallest_widths / space.sizes

    def at(
        positions: Float[np.ndarray, " n"],
    ) -> tuple[Int[np.ndarray, "n groups"], Float[np.ndarray, " n"]]:
        # As in on_ray: 0 is the unpruned end, a half the ratios themselves, 1 the other end.
        with np.errstate(divide="ignore"):
            strength = (positions / (1.0 - positions))[:, None]
        grown = np.where(parts > 0, strength * np.maximum(parts, 1e-12), 0.0)
        widths, keep = space.realise(np.minimum(grown, 1.0) * largest, dropped)
        return widths, problem.predict(widths, keep)

    count = len(parts)
    keep = space.realise(np.zeros_like(parts), dropped)[1]
    low, high = np.zeros(count), np.ones(count)
    low_ms = at(low)[1]
    best, high_ms = at(high)
    high = np.where(low_ms <= limit_ms, 0.0, high)
    best = np.where((low_ms <= limit_ms)[:, None], space.sizes, best)
    for guess in range(_GUESSES):
        # Halves first: strength is far from linear, and false position alone creeps.
        share = 0.5
        if guess >= 2:
            gap = np.maximum(low_ms - high_ms, 1e-12)
            share = np.clip((low_ms - limit_ms) / gap, 0.1, 0.9)
        middle = low + share * (high - low)
        widths, ms = at(middle)
        fits = ms <= limit_ms
        best = np.where(fits[:, None], widths, best)
        high, high_ms = np.where(fits, middle, high), np.where(fits, ms, high_ms)
        low, low_ms = np.where(fits, low, middle), np.where(fits, low_ms, ms)
    best = np.where(space.active(keep), best, space.sizes)
    return best, keep, problem.predict(best, keep) <= limit_ms


def random_at(problem: Problem, rng: np.random.Generator, limit_ms: float) -> Candidate:
    """Return a random candidate at a latency, as the sampler ``random`` draws them.

    Args:
        problem: Space and latency.
        rng: Source of randomness.
        limit_ms: Latency in ms.
    """
    return reach(problem, random_candidate(problem, rng, target_ms=limit_ms), limit_ms)


def positions_at(
    problem: Problem,
    ratios: Float[np.ndarray, "n groups"],
    dropped: Bool[np.ndarray, "n blocks"],
    limit_ms: float,
) -> Float[np.ndarray, "n groups"]:
    """Return candidates as points that can be subtracted: all scaled to about one latency.

    A group that is gone with its block has no ratio; it is where the candidate's other groups are
    on average.

    Args:
        problem: Space and latency.
        ratios: Fraction removed per group.
        dropped: Whether each block is dropped.
        limit_ms: Latency in ms.

    Returns:
        Ratios as parts of the largest, in [0, 1].
    """
    space = problem.space
    widths, keep, _ = reach_rows(problem, directions(problem, ratios), dropped, limit_ms)
    parts = directions(problem, 1.0 - widths / space.sizes)
    counts = space.active(keep) & (space.smallest_widths < space.sizes)
    mean = (parts * counts).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    filled: Float[np.ndarray, "n groups"] = np.where(space.active(keep), parts, mean[:, None])
    return filled


def at_position(
    problem: Problem,
    parts: Float[np.ndarray, " groups"],
    dropped: Bool[np.ndarray, " blocks"],
    limit_ms: float,
) -> Candidate:
    """Return the candidate of a point, scaled to a latency.

    Args:
        problem: Space and latency.
        parts: Ratios as parts of the largest; what is outside [0, 1] is moved to its ends.
        dropped: Blocks that go.
        limit_ms: Latency in ms.
    """
    largest = 1.0 - problem.space.smallest_widths / problem.space.sizes
    ratios = np.clip(parts, 0.0, 1.0) * largest
    return reach(problem, Candidate(tuple(ratios.tolist()), tuple(dropped.tolist())), limit_ms)
