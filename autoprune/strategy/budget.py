"""Moves any candidate inside the latency budget and all other limits, on exact predictions.

Latency is a staircase of the widths and need not fall with every unit that goes, so nothing here
trusts a slope: every step compares predictions, every loop is bounded, the result is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.errors import BudgetError
from autoprune.strategy.fastest import search_fastest
from autoprune.strategy.goals import LATENCY, Cost, Limit, described
from autoprune.strategy.moves import single_moves, with_moves
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate

#: Width and keep matrices ``[n, groups]`` and ``[n, blocks]`` of the points of a path.
Points = tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]

#: The way out where a search space is too narrow.
_MORE = "let the search space remove more (max_ratio, depth, max_dropped)"

#: The path is cut into this many pieces, and the piece where it enters the budget again, ...
_PIECES = 32
#: ... this many times: 32 ** 3 positions tell single units of any layer apart.
_CUTS = 3

#: Most rounds of widening; each widens at least one group, most of them many.
_WIDENINGS = 100

#: Predictions that differ by less are the same staircase step; sums differ in the last digits
#: with the number of rows that are predicted together.
_SAME = 1e-9


def check(problem: Problem) -> None:
    """Return if some candidate meets the budget and all other limits.

    Raises:
        BudgetError: None was found; the message says what can be reached.
    """
    budget, limit = problem.budget_ms, problem.limit_ms
    if limit is None:
        return
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise BudgetError(f"a latency budget is a positive number of ms, got {budget!r}")
    if problem.fastest[1] > limit:
        raise BudgetError(_unreachable(problem, limit))


def _unreachable(problem: Problem, limit_ms: float) -> str:
    """Return what is asked for too much, and what can be reached."""
    if not problem.limits:
        return (
            f"no candidate of the search space meets the budget of {limit_ms:.6g} ms: the fastest "
            f"needs {problem.fastest[1]:.6g} ms, the unpruned network {problem.dense_ms:.6g} ms; "
            f"raise the budget, or {_MORE}"
        )
    limits = list(problem.limits)
    if problem.budget_ms is not None or limit_ms < problem.ceiling_ms:
        limits.append(Limit(Cost(LATENCY, problem.latency), limit_ms))
    least = [search_fastest(problem.space, limit.cost.values) for limit in limits]
    alone = [
        float(m.cost.values(*candidate)[0]) for m, candidate in zip(limits, least, strict=True)
    ]
    reached = ", ".join(
        described(m.cost.name, value) for m, value in zip(limits, alone, strict=True)
    )
    together = ""
    if all(value <= limit.most for value, limit in zip(alone, limits, strict=True)):
        nearest = problem.fastest[0]
        rows = problem.space.widths([nearest]), problem.space.keep([nearest])
        near = ", ".join(described(m.cost.name, float(m.cost.values(*rows)[0])) for m in limits)
        together = f"; together, the nearest that was found has {near}"
    return (
        f"no candidate of the search space meets {', '.join(map(str, limits))}: the least that "
        f"each can be alone is {reached}{together}; relax a limit, or {_MORE}"
    )


def fastest(problem: Problem) -> tuple[Candidate, float]:
    """Return the fastest candidate that descent finds, and its latency in ms.

    See :func:`autoprune.strategy.fastest.search_fastest` for when that is the fastest of all.
    """
    return problem.fastest


def project(
    problem: Problem, candidate: Candidate, *, budget_ms: float | None = None, fill: bool = True
) -> Candidate:
    """Return the candidate, snapped, and moved to the budget if it is over it.

    All ratios are scaled up from r to r + s * (max - r) with the smallest s that fits; only where
    s = 1 does not, blocks are dropped, those first that save most. With ``fill`` the units that
    the coarse steps removed needlessly come back: first towards the given candidate, then
    anywhere. A candidate inside the budget keeps its latency, but with ``fill`` is moved to the
    wide end of its latency plateau, where more units cost nothing.

    Args:
        problem: Space, latency, budget and limits, which are met too.
        candidate: Any ratios and drops.
        budget_ms: A budget to use instead of the problem's, in ms.
        fill: Whether units that cost no latency are put back.

    Returns:
        A snapped candidate whose predicted latency is at most the budget.

    Raises:
        BudgetError: No candidate meets the budget; the message says what can be reached.
    """
    budget = problem.limit_ms if budget_ms is None else budget_ms
    if problem.limits:
        # Above the ceiling, latencies no longer tell who is over a limit.
        budget = min(math.inf if budget is None else budget, problem.ceiling_ms)
    # The second pass is for a result that sits on the budget but for the last digits.
    for limit in (math.inf,) if budget is None else (budget, budget * (1.0 - _SAME)):
        widths, keep = _within(problem, candidate, limit, fill)
        result = problem.space.candidates(widths, keep)[0]
        if budget is None or problem.latency_ms([result])[0] <= budget:
            return result
    raise BudgetError(
        f"the latency predictor contradicts itself around {budget:.6g} ms: one candidate got "
        "different latencies alone and beside others; check the device profile"
    )


def first_within(
    problem: Problem, path: Callable[[Float[np.ndarray, " n"]], Points], limit_ms: float
) -> Points | None:
    """Return the first point of a path whose latency is within a limit, if any is.

    Where latency falls and rises along the path, it is the first among evenly spaced points.

    Args:
        problem: Supplies the latency.
        path: Positions in [0, 1] to widths and kept blocks.
        limit_ms: Latency in ms.

    Returns:
        Width and keep matrices of one row, or ``None``.
    """
    low, high, found = 0.0, 1.0, None
    for _ in range(_CUTS):
        positions = np.linspace(low, high, _PIECES + 1)
        widths, keep = path(positions)
        fits = problem.predict(widths, keep) <= limit_ms
        if not fits.any():
            break
        first = int(np.argmax(fits))
        found = widths[first : first + 1], keep[first : first + 1]
        if first == 0:
            break
        low, high = positions[first - 1], positions[first]
    return found


def widen(
    problem: Problem,
    widths: Int[np.ndarray, "1 groups"],
    keep: Bool[np.ndarray, "1 blocks"],
    limit_ms: float,
    *,
    ceiling: Int[np.ndarray, " groups"] | None = None,
) -> Int[np.ndarray, "1 groups"]:
    """Return widths to which no single widening can be added within a latency limit.

    Args:
        problem: Space and latency.
        widths: Where to start, on the grid and within the limit.
        keep: Kept blocks; they stay.
        limit_ms: Latency not to exceed, in ms.
        ceiling: Widths not to exceed, on the grid; ``None`` allows full widths. Groups furthest
            below it, as a fraction of their size, come first.
    """
    space = problem.space
    bound = space.sizes if ceiling is None else np.maximum(ceiling, widths[0])
    active = space.active(keep)[0]
    for _ in range(_WIDENINGS):
        groups, targets = single_moves(space, widths[0], bound=bound, allowed=active)
        if not len(groups):
            break
        ms = _predict(problem, with_moves(widths[0], groups, targets), keep)
        # Of a group's moves that fit, the longest; moves are listed short to long.
        longest = dict(zip(groups[ms <= limit_ms], targets[ms <= limit_ms], strict=True))
        if not longest:
            break
        order = sorted(longest, key=lambda g: (-(bound[g] - widths[0, g]) / space.sizes[g], g))
        # Row k applies the first k + 1 moves; the most that fit together are taken.
        together = np.repeat(widths, len(order), axis=0)
        for row, group in enumerate(order):
            together[row:, group] = longest[group]
        fits = np.flatnonzero(_predict(problem, together, keep) <= limit_ms)
        if not len(fits):
            break
        widths = together[fits[-1] : fits[-1] + 1]
    return widths


def _predict(
    problem: Problem, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "1 blocks"]
) -> Float[np.ndarray, " n"]:
    return problem.predict(widths, np.repeat(keep, len(widths), axis=0))


def _within(problem: Problem, candidate: Candidate, limit: float, fill: bool) -> Points:
    space = problem.space
    start, keep = space.widths([candidate]), space.keep([candidate])
    ms = float(problem.predict(start, keep)[0])
    if ms <= limit:
        plateau = min(limit, ms * (1.0 + _SAME))
        return (widen(problem, start, keep, plateau) if fill else start), keep
    widths, keep = _scaled_up(problem, start, keep, limit)
    if fill:
        widths = widen(problem, widths, keep, limit, ceiling=start[0])
        widths = widen(problem, widths, keep, limit)
    return widths, keep


def _scaled_up(
    problem: Problem,
    start: Int[np.ndarray, "1 groups"],
    keep: Bool[np.ndarray, "1 blocks"],
    limit: float,
) -> Points:
    """Return the first point within the limit on the way to the narrowest widths."""
    space = problem.space
    ratios = 1.0 - start / space.sizes
    most = 1.0 - space.smallest_widths / space.sizes

    def towards_smallest(kept: Bool[np.ndarray, "1 blocks"]) -> Points | None:
        def path(positions: Float[np.ndarray, " n"]) -> Points:
            scaled = ratios + positions[:, None] * (most - ratios)
            return space.realise(scaled, np.repeat(~kept, len(positions), axis=0))

        return first_within(problem, path, limit)

    found = towards_smallest(keep)
    if found is None:
        dropped = _fewest_drops(problem, keep, limit)
        found = None if dropped is None else towards_smallest(dropped)
    if found is None:
        # What no scaling reaches, descent may.
        best, ms = problem.fastest
        if ms > limit:
            raise BudgetError(_unreachable(problem, limit))
        found = space.widths([best]), space.keep([best])
    return found


def _fewest_drops(
    problem: Problem, keep: Bool[np.ndarray, "1 blocks"], limit: float
) -> Bool[np.ndarray, "1 blocks"] | None:
    """Return ``keep`` with as few more blocks dropped as the narrowest widths need to fit."""
    space = problem.space
    free = np.flatnonzero(keep[0] & np.array(space.droppable, bool))
    gone = int((~keep).sum())
    most = len(space.blocks) if space.max_dropped is None else space.max_dropped
    choices = [problem.space.keep([problem.fastest[0]])[0]]
    if len(free) and gone < most:
        alone = np.repeat(keep, len(free), axis=0)
        alone[np.arange(len(free)), free] = False
        saves_most = free[np.argsort(_smallest_ms(problem, alone), kind="stable")]
        for count in range(min(len(free), most - gone), 0, -1):
            chosen = keep[0].copy()
            chosen[saves_most[:count]] = False
            choices.insert(0, chosen)
    rows = np.array(choices, bool).reshape(len(choices), len(space.blocks))
    fits = np.flatnonzero(_smallest_ms(problem, rows) <= limit)
    return rows[fits[0] : fits[0] + 1] if len(fits) else None


def _smallest_ms(problem: Problem, keep: Bool[np.ndarray, "n blocks"]) -> Float[np.ndarray, " n"]:
    """Return the latency in ms with every group at its narrowest."""
    space = problem.space
    narrowest = np.repeat(space.smallest_widths[None], len(keep), axis=0)
    return problem.predict(*space.realise(1.0 - narrowest / space.sizes, ~keep))
