"""Cheapest candidate within a latency budget: a knapsack with interactions, on exact latency.

How other strategies use it, with a damage of their own::

    allocator = Allocator(problem)                       # finds the level grid, once
    costs = Costs.of_damage(allocator.grid, damage)      # or tables of your own, several at once
    candidate = allocator.solve(costs, budget_ms)        # thorough: one cost function, one budget
    points, price = allocator.solve_many(costs, budgets_ms)  # quick: a candidate per function
    points = allocator.repair(costs, points, budgets_ms)     # cheapest narrowing, then fill

The latency is a black box over rows, so every step lists all its moves and asks for them in one
call.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.strategy.budget import project
from autoprune.strategy.costs import Costs
from autoprune.strategy.levels import LevelGrid, plateau_levels
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate

#: The price of a millisecond is sought within this many decades of the largest cost per unpruned
#: latency, and the interval is halved so often; then the same where the price is about known.
_WIDE = (4.5, 11)
_NARROW = (0.5, 4)

#: Most sweeps of coordinate descent per price.
_SWEEPS = 3

#: Numbers of dropped blocks that the descent starts from.
_STARTS = 4

#: Most exchanges, and most pairs of moves that are looked at for one: first few, then more.
_EXCHANGES = 25
_PAIRS = (256, 4096)

#: Pairs whose latencies do not add up are looked at that far over the limit, and those whose costs
#: do not, up to this fraction of the largest cost.
_PAIR_SLACK = 1.2
_PAIR_RISE = 0.3

#: Most combinations of a core, and most moves of one place in it.
_CORE = 4096
_CORE_OPTIONS = 3

#: Most moves whose pairs are listed.
_MOVES_PAIRED = 1200

#: Relative improvements below this are rounding.
_ROUNDING = 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Candidates on the level grid, with what they cost under their cost function.

    Attributes:
        levels: Level of every group; inside a dropped block, the level it would come back with.
        keep: Whether each block is kept.
        draw: Which cost function each row is judged by.
        cost: Its value, infinite where more blocks are dropped than allowed.
        ms: Predicted latency.
    """

    levels: Int[np.ndarray, "n groups"]
    keep: Bool[np.ndarray, "n blocks"]
    draw: Int[np.ndarray, " n"]
    cost: Float[np.ndarray, " n"]
    ms: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.draw)

    def take(self, rows: Int[np.ndarray, " m"]) -> Points:
        """Return some of the rows."""
        return Points(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def where(self, condition: Bool[np.ndarray, " n"], other: Points) -> Points:
        """Return these rows where the condition holds, else those of ``other``."""
        columns = [
            np.where(condition.reshape(-1, *(1,) * (mine.ndim - 1)), mine, theirs)
            for mine, theirs in (
                (getattr(self, field.name), getattr(other, field.name))
                for field in dataclasses.fields(self)
            )
        ]
        return Points(*columns)


@dataclasses.dataclass(frozen=True, eq=False)
class _Moves:
    """Single changes of points: a group to another level, or a block dropped or put back.

    Attributes:
        row: Which point is changed.
        place: The group, or the number of groups plus the block.
        level: The group's new level; not read for blocks.
        cost: Cost of the changed point.
        ms: Latency of the changed point.
        allowed: Whether the changed point drops no more blocks than it may.
    """

    row: Int[np.ndarray, " moves"]
    place: Int[np.ndarray, " moves"]
    level: Int[np.ndarray, " moves"]
    cost: Float[np.ndarray, " moves"]
    ms: Float[np.ndarray, " moves"]
    allowed: Bool[np.ndarray, " moves"]

    def take(self, which: Int[np.ndarray, " m"] | Bool[np.ndarray, " moves"]) -> _Moves:
        """Return some of the moves."""
        return _Moves(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))

    def ranked(self, value: Float[np.ndarray, " moves"]) -> tuple[_Moves, Int[np.ndarray, " m"]]:
        """Return the move of lowest value at every place, and its rank among those of its row."""
        order = np.lexsort((value, self.place, self.row))
        row, place = self.row[order], self.place[order]
        first = np.append(True, (np.diff(row) != 0) | (np.diff(place) != 0))[: len(order)]
        order = order[first]
        order = order[np.lexsort((value[order], self.row[order]))]
        row = self.row[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        return self.take(order), rank


class Allocator:
    """Solves ``min cost(candidate) subject to latency(candidate) <= budget``.

    Lagrangian bisection: for a price of a millisecond, coordinate descent on cost + price *
    latency, in which all groups and blocks move at once as far as that helps; the price is halved
    towards the budget. What is left of the budget is then used by single moves and by exchanges of
    two moves, and the result goes to the wide end of its plateau.
    """

    def __init__(self, problem: Problem, *, grid: LevelGrid | None = None) -> None:
        """Store the problem and find its level grid.

        Args:
            problem: Space and latency.
            grid: The levels to choose from; those of :func:`plateau_levels` if ``None``.
        """
        self.problem = problem
        self.grid = plateau_levels(problem) if grid is None else grid
        self._last: tuple[Costs, tuple[bytes, bytes, bytes], _Moves] | None = None

    # --- what is asked for --------------------------------------------------------------------

    def solve(self, costs: Costs, budget_ms: float) -> Candidate:
        """Return a candidate within the budget, of nearly the least cost.

        Args:
            costs: Cost functions; the first is used. They should not rise with the width.
            budget_ms: Latency not to exceed, in ms.

        Raises:
            BudgetError: No candidate meets the budget; the message says what can be reached.
        """
        return self.candidates(self.allocate(costs, budget_ms), np.array([budget_ms]))[0]

    def allocate(self, costs: Costs, budget_ms: float) -> Points:
        """Return what :meth:`solve` finds, as one point on the level grid.

        Args:
            costs: Cost functions; the first is used.
            budget_ms: Latency not to exceed, in ms; if nothing fits, the result does not.
        """
        starts = self._starts(costs)
        limits = np.full(len(starts), budget_ms)
        first, price = self.solve_many(costs, limits[:1], start=starts.take(np.arange(1)))
        rest = starts.take(np.arange(1, len(starts)))
        others, _ = self.solve_many(costs, limits[1:], start=rest, price=price[[0] * len(rest)])
        points = _joined(first, others)
        best = np.argmin(np.where(points.ms <= limits, points.cost, np.inf))
        return self._polished(costs, points.take(np.array([best])), budget_ms)

    def solve_many(
        self,
        costs: Costs,
        budgets_ms: Float[np.ndarray, " n"],
        *,
        start: Points | None = None,
        price: Float[np.ndarray, " n"] | None = None,
    ) -> tuple[Points, Float[np.ndarray, " n"]]:
        """Return one good candidate per budget, without exchanges, and the price that led to it.

        Args:
            costs: Cost functions, one per row unless ``start`` says which.
            budgets_ms: Latency not to exceed, in ms, for each row.
            start: Where the descent starts; the unpruned network if ``None``.
            price: About what a millisecond costs, where that is known.

        Returns:
            Points within their budgets (where none was found, the fastest candidate), and the
            price of a millisecond in cost.
        """
        point = start
        if point is None:
            point = self.at(costs, *self._full(len(budgets_ms)), np.arange(len(budgets_ms)))
        if price is None:
            middle, width, halvings = costs.scale[point.draw] / self.problem.dense_ms, *_WIDE
        else:
            middle, width, halvings = price, *_NARROW
        low, high = np.log10(middle) - width, np.log10(middle) + width
        best = over = point
        found = point.ms <= budgets_ms
        for _ in range(halvings):
            log_price = (low + high) / 2.0
            point = self._descended(costs, point, 10.0**log_price, rounds=_SWEEPS)
            fits = point.ms <= budgets_ms
            best = point.where(fits & ~(found & (best.cost <= point.cost)), best)
            found |= fits
            over = over.where(fits, point)
            low, high = np.where(fits, low, log_price), np.where(fits, log_price, high)
        repaired = self.repair(costs, over, budgets_ms)
        best = self._filled(costs, best, budgets_ms)
        better = (repaired.ms <= budgets_ms) & ~(found & (best.cost <= repaired.cost))
        best = repaired.where(better, best)
        return best.where(best.ms <= budgets_ms, self._fastest(costs, point.draw)), 10.0**high

    def repair(self, costs: Costs, points: Points, budgets_ms: Float[np.ndarray, " n"]) -> Points:
        """Return points that were narrowed until they fit and then filled up.

        Moves of least cost per millisecond saved go first. Where no move helps any more, a point
        stays over its budget.

        Args:
            costs: Cost functions.
            points: Where to start.
            budgets_ms: Latency not to exceed, in ms, for each row.
        """
        space = self.problem.space
        # A round changes each place at most once, so this many always suffice.
        for _ in range(len(space.dimensions) + len(space.blocks) + 1):
            rows = np.flatnonzero(points.ms > budgets_ms)
            if not len(rows):
                break
            narrowed = self._narrowed(costs, points.take(rows), budgets_ms[rows])
            if not (narrowed.ms < points.ms[rows]).any():
                break
            points = _put(points, rows, narrowed)
        return self._filled(costs, points, budgets_ms)

    def points(self, costs: Costs, candidates: list[Candidate], draw: int = 0) -> Points:
        """Return candidates moved to the nearest levels."""
        space = self.problem.space
        levels = self.grid.nearest(space.widths(candidates))
        which = np.full(len(candidates), draw, np.int64)
        return self.at(costs, levels, space.keep(candidates), which)

    def candidates(self, points: Points, budgets_ms: Float[np.ndarray, " n"]) -> list[Candidate]:
        """Return the candidates of points, each at the wide end of its latency plateau.

        Raises:
            BudgetError: A budget cannot be met.
        """
        made = self.problem.space.candidates(*self.widths(points.levels, points.keep))
        return [
            project(self.problem, candidate, budget_ms=float(budget))
            for candidate, budget in zip(made, budgets_ms, strict=True)
        ]

    # --- points -------------------------------------------------------------------------------

    def _full(self, count: int) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
        space = self.problem.space
        return (
            np.zeros((count, len(space.dimensions)), np.int64),
            np.ones((count, len(space.blocks)), bool),
        )

    def _starts(self, costs: Costs) -> Points:
        """Return unpruned networks without the blocks that save most for their cost.

        Descent decides widths well, but seldom puts a block back and drops another; so it starts
        from several numbers of dropped blocks, none to all that may be, and from single ones.
        """
        space = self.problem.space
        dense = self.at(costs, *self._full(1), np.zeros(1, np.int64))
        moves = self._moves(costs, dense)
        moves = moves.take((moves.place >= len(space.dimensions)) & moves.allowed)
        saved = np.maximum(dense.ms[0] - moves.ms, 1e-300)
        blocks = moves.place[np.argsort(moves.cost / saved, kind="stable")] - len(space.dimensions)
        most = len(blocks) if space.max_dropped is None else min(space.max_dropped, len(blocks))
        counts = np.linspace(0, most, _STARTS).round().astype(np.int64)
        alone = range(1, len(blocks) if most else 0)
        patterns = [blocks[:count] for count in counts] + [blocks[b : b + 1] for b in alone]
        distinct = {tuple(sorted(pattern.tolist())): pattern for pattern in patterns}
        dropped = list(distinct.values())[:_STARTS]
        levels, keep = self._full(len(dropped))
        for row, gone in enumerate(dropped):
            keep[row, gone] = False
        return self.at(costs, levels, keep, np.zeros(len(dropped), np.int64))

    def _fastest(self, costs: Costs, draw: Int[np.ndarray, " n"]) -> Points:
        space, fastest = self.problem.space, [self.problem.fastest[0]]
        levels = np.repeat(self.grid.nearest(space.widths(fastest)), len(draw), axis=0)
        return self.at(costs, levels, np.repeat(space.keep(fastest), len(draw), axis=0), draw)

    def widths(
        self, levels: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
        """Return the units that levels stand for, full widths inside dropped blocks."""
        space = self.problem.space
        table = self.grid.widths
        widths = table.ravel().take(levels + table.shape[1] * np.arange(len(table)))
        return np.where(space.active(keep), widths, space.sizes), keep

    def _ms(
        self, levels: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        return self.problem.predict(*self.widths(levels, keep))

    def _allowed(self, keep: Bool[np.ndarray, "n blocks"]) -> Bool[np.ndarray, " n"]:
        most = self.problem.space.max_dropped
        allowed: Bool[np.ndarray, " n"] = (~keep).sum(axis=1) <= (
            keep.shape[1] if most is None else most
        )
        return allowed

    def at(
        self,
        costs: Costs,
        levels: Int[np.ndarray, "n groups"],
        keep: Bool[np.ndarray, "n blocks"],
        draw: Int[np.ndarray, " n"],
    ) -> Points:
        """Return levels and kept blocks as points under the cost functions ``draw``."""
        cost = costs.at(self.problem.space, levels, keep, draw)
        cost = np.where(self._allowed(keep), cost, np.inf)
        return Points(levels, keep, draw, cost, self._ms(levels, keep))

    # --- moves --------------------------------------------------------------------------------

    def _moves(self, costs: Costs, points: Points) -> _Moves:
        """Return every single change of every point.

        Steps follow one another on points that the last one left as they are, at another price or
        with another limit, neither of which matters here; so the last answer is kept.
        """
        key = (points.levels.tobytes(), points.keep.tobytes(), points.draw.tobytes())
        known = self._last
        if known is None or known[0] is not costs or known[1] != key:
            known = costs, key, self._listed(costs, points)
            self._last = known
        return known[2]

    def _listed(self, costs: Costs, points: Points) -> _Moves:
        """Return every single change of every point."""
        space, groups = self.problem.space, points.levels.shape[1]
        levels, keep = points.levels, points.keep
        possible = self.grid.valid & space.active(keep)[:, :, None]
        possible &= np.arange(self.grid.widths.shape[1]) != levels[:, :, None]
        row, place, level = np.nonzero(possible)
        table = costs.tables(space, levels, keep, points.draw)
        current = np.take_along_axis(table, levels[:, :, None], axis=2)
        cost = (points.cost[:, None, None] + table - current)[row, place, level]
        toggled = np.broadcast_to(np.array(space.droppable, bool), keep.shape)
        block_row, block = np.nonzero(toggled)
        row, place = np.append(row, block_row), np.append(place, groups + block)
        level = np.append(level, np.zeros_like(block))
        changed = self._changed(points, np.arange(len(row)), row, place, level)
        first = len(cost)
        cost = np.append(
            cost,
            costs.at(space, changed[0][first:], changed[1][first:], points.draw[block_row]),
        )
        return _Moves(row, place, level, cost, self._ms(*changed), self._allowed(changed[1]))

    def _changed(
        self,
        points: Points,
        target: Int[np.ndarray, " changes"],
        row: Int[np.ndarray, " n"],
        place: Int[np.ndarray, " changes"],
        level: Int[np.ndarray, " changes"],
    ) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
        """Return copies of the points ``row``, with changes to the copies ``target``."""
        levels, keep = points.levels[row], points.keep[row]
        groups = levels.shape[1]
        of_group = place < groups
        levels[target[of_group], place[of_group]] = level[of_group]
        keep[target[~of_group], place[~of_group] - groups] ^= True
        return levels, keep

    def _together(
        self,
        costs: Costs,
        points: Points,
        moves: _Moves,
        rank: Int[np.ndarray, " moves"],
        most: Int[np.ndarray, " prefixes"],
    ) -> tuple[Points, Int[np.ndarray, " n"]]:
        """Return points with the first moves of their row applied, for several numbers of moves.

        Args:
            costs: Cost functions.
            points: Where the moves start.
            moves: Moves of distinct places, sorted by row and rank.
            rank: Rank of each move within its row.
            most: Numbers of moves, ascending.

        Returns:
            The changed points and the row each comes from; prefixes longer than a row's moves are
            made once.
        """
        count = np.bincount(moves.row, minlength=len(points))
        shorter = np.append(0, most[:-1])
        row, prefix = np.nonzero(count[:, None] > shorter)
        size = np.minimum(most[prefix], count[row])
        start = np.searchsorted(moves.row, row)
        target = np.repeat(np.arange(len(row)), size)
        nth = np.arange(len(target)) - np.repeat(np.cumsum(size) - size, size)
        which = start[target] + nth
        changed = self._changed(points, target, row, moves.place[which], moves.level[which])
        return self.at(costs, *changed, points.draw[row]), row

    # --- descent, narrowing, filling ----------------------------------------------------------

    def _descended(
        self,
        costs: Costs,
        points: Points,
        price: Float[np.ndarray, " n"],
        *,
        rounds: int,
        limit_ms: Float[np.ndarray, " n"] | None = None,
    ) -> Points:
        """Return points of lower cost + price * latency, within the limits if they started so."""
        limit = np.full(len(points), np.inf) if limit_ms is None else limit_ms
        rows = np.arange(len(points))
        for _ in range(rounds):
            part = points.take(rows)
            moved, improved = self._lower(costs, part, price[rows], limit[rows])
            points = _put(points, rows, moved)
            rows = rows[improved]
            if not len(rows):
                break
        return points

    def _lower(
        self,
        costs: Costs,
        points: Points,
        price: Float[np.ndarray, " n"],
        limit: Float[np.ndarray, " n"],
    ) -> tuple[Points, Bool[np.ndarray, " n"]]:
        """Return points after one sweep, and which of them improved."""
        now = points.cost + price * points.ms
        moves = self._moves(costs, points)
        value = moves.cost + price[moves.row] * moves.ms - now[moves.row]
        smallest = _ROUNDING * (np.abs(points.cost) + price * points.ms)
        helps = moves.allowed & (value < -smallest[moves.row]) & (moves.ms <= limit[moves.row])
        if not helps.any():
            return points, np.zeros(len(points), bool)
        moves, rank = moves.take(helps).ranked(value[helps])
        # Moves were judged alone; together they may undo each other, so fewer are tried too.
        most = 2 ** np.arange(int(rank.max()).bit_length() + 1)
        tried, row = self._together(costs, points, moves, rank, most)
        score = np.where(tried.ms <= limit[row], tried.cost + price[row] * tried.ms, np.inf)
        return _best(points, tried, row, score, now - smallest)

    def _narrowed(self, costs: Costs, points: Points, limit: Float[np.ndarray, " n"]) -> Points:
        """Return faster points: the cheapest that fit, else those with most moves applied."""
        moves = self._moves(costs, points)
        saved = points.ms[moves.row] - moves.ms
        smallest = 1e-4 * costs.scale[points.draw[moves.row]]
        rise = moves.cost - points.cost[moves.row] + smallest
        faster = moves.allowed & (saved > _ROUNDING * points.ms[moves.row])
        if not faster.any():
            return points
        alone = moves.take(faster & (moves.ms <= limit[moves.row]))
        ratio = rise[faster] / saved[faster]
        steps, rank = moves.take(faster).ranked(ratio)
        tried, row = self._together(costs, points, steps, rank, 1 + np.arange(rank.max() + 1))
        levels, keep = self._changed(
            points, np.arange(len(alone.row)), alone.row, alone.place, alone.level
        )
        single = Points(levels, keep, points.draw[alone.row], alone.cost, alone.ms)
        tried, row = _joined(tried, single), np.append(row, alone.row)
        # Among those that do not fit, the fastest; all of them are worse than any that does.
        fits = tried.ms <= limit[row]
        allowed = np.isfinite(tried.cost)
        worst = np.abs(tried.cost[allowed]).max(initial=0.0) + 1.0
        score = np.where(allowed, np.where(fits, tried.cost, worst + tried.ms), np.inf)
        return _best(points, tried, row, score, worst + points.ms)[0]

    def _filled(self, costs: Costs, points: Points, limit: Float[np.ndarray, " n"]) -> Points:
        """Return points to which no single change within the limit can be added that pays."""
        fits = np.flatnonzero(points.ms <= limit)
        if not len(fits):
            return points
        part = points.take(fits)
        filled = self._descended(
            costs, part, np.zeros(len(part)), rounds=_EXCHANGES, limit_ms=limit[fits]
        )
        return _put(points, fits, filled)

    # --- exchanges ----------------------------------------------------------------------------

    def _polished(self, costs: Costs, point: Points, limit_ms: float) -> Points:
        """Return one point after exchanges that keep it within the limit, if it is."""
        for _ in range(_EXCHANGES if point.ms[0] <= limit_ms else 0):
            better = self._exchange(costs, point, limit_ms)
            if better is None:
                better = self._core(costs, point, limit_ms)
            if better is None:
                break
            point = self._filled(costs, better, np.array([limit_ms]))
        return point

    def _exchange(self, costs: Costs, point: Points, limit_ms: float) -> Points | None:
        """Return the best of the most promising pairs of moves, if it is better."""
        moves = self._moves(costs, point)
        moves = moves.take(_nearest_first(moves, point)[:_MOVES_PAIRED])
        rise, more = moves.cost - point.cost[0], moves.ms - point.ms[0]
        cost = rise[:, None] + rise
        # As if moves added up, with some slack; what is looked at is then computed exactly.
        fits = point.ms[0] + more[:, None] + more <= limit_ms * _PAIR_SLACK
        fits &= moves.place[:, None] < moves.place
        first, second = np.nonzero(fits & (cost < _PAIR_RISE * costs.scale[point.draw[0]]))
        order = _lowest(cost[first, second], _PAIRS[-1])
        start = 0
        for most in _PAIRS:
            chosen = order[start:most]
            pair = np.stack([first[chosen], second[chosen]])
            better = self._better(costs, point, moves, pair.T, limit_ms)
            if better is not None or len(order) <= most:
                return better
            start = most
        return None

    def _core(self, costs: Costs, point: Points, limit_ms: float) -> Points | None:
        """Return the best combination of the moves that are nearest to being worth it, if better.

        That is the core of a knapsack problem: most places are decided clearly by the price of a
        millisecond; the others are enumerated together. Small problems are core as a whole.
        """
        moves = self._moves(costs, point)
        rise, more = moves.cost - point.cost[0], moves.ms - point.ms[0]
        moves = moves.take(np.argsort(rise + _price(rise, more) * more, kind="stable"))
        options: dict[int, list[int]] = {}
        combinations = 1
        for index, place in enumerate(moves.place.tolist()):
            known = options.get(place, [])
            if len(known) == _CORE_OPTIONS:
                continue
            larger = combinations // (len(known) + 1) * (len(known) + 2)
            if larger > _CORE:
                break
            combinations = larger
            options[place] = [*known, index]
        if not options:
            return None
        axes = [np.array([-1, *chosen]) for chosen in options.values()]
        mesh = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
        return self._better(costs, point, moves, mesh, limit_ms)

    def _better(
        self,
        costs: Costs,
        point: Points,
        moves: _Moves,
        choice: Int[np.ndarray, "n together"],
        limit_ms: float,
    ) -> Points | None:
        """Return the cheapest point within the limit after moves together, if it is better.

        Args:
            costs: Cost functions.
            point: Where the moves start.
            moves: Moves to choose from.
            choice: Indices of the moves of each combination, of distinct places; -1 for none.
            limit_ms: Latency not to exceed, in ms.
        """
        if not len(choice):
            return None
        target, column = np.nonzero(choice >= 0)
        which = choice[target, column]
        row = np.zeros(len(choice), np.int64)
        changed = self._changed(point, target, row, moves.place[which], moves.level[which])
        tried = self.at(costs, *changed, point.draw[row])
        score = np.where(tried.ms <= limit_ms, tried.cost, np.inf)
        best = int(np.argmin(score))
        smallest = _ROUNDING * (abs(point.cost[0]) + costs.scale[point.draw[0]])
        return tried.take(np.array([best])) if score[best] < point.cost[0] - smallest else None


def _put(points: Points, rows: Int[np.ndarray, " m"], new: Points) -> Points:
    """Return the points with some rows replaced."""
    columns = []
    for field in dataclasses.fields(points):
        column = getattr(points, field.name).copy()
        column[rows] = getattr(new, field.name)
        columns.append(column)
    return Points(*columns)


def _joined(first: Points, second: Points) -> Points:
    return Points(
        *(
            np.concatenate([getattr(first, field.name), getattr(second, field.name)])
            for field in dataclasses.fields(first)
        )
    )


def _best(
    points: Points,
    tried: Points,
    row: Int[np.ndarray, " m"],
    score: Float[np.ndarray, " m"],
    below: Float[np.ndarray, " n"],
) -> tuple[Points, Bool[np.ndarray, " n"]]:
    """Return for each point the tried one of lowest score, if that is below a bound."""
    order = np.lexsort((score, row))
    rows, first = np.unique(row[order], return_index=True)
    best = order[first]
    lower = score[best] < below[rows]
    improved = np.zeros(len(points), bool)
    improved[rows[lower]] = True
    return _put(points, rows[lower], tried.take(best[lower])), improved


def _lowest(values: Float[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """Return where the lowest values are, in order; equal ones as they stand."""
    if len(values) <= most:
        return np.argsort(values, kind="stable")
    low = np.flatnonzero(values <= np.partition(values, most - 1)[most - 1])
    return low[np.argsort(values[low], kind="stable")][:most]


def _nearest_first(moves: _Moves, point: Points) -> Int[np.ndarray, " m"]:
    """Return the order of moves by the number of levels they go over; blocks come first."""
    padded = np.append(point.levels[0], np.zeros(point.keep.shape[1], np.int64))
    return np.argsort(np.abs(moves.level - padded[moves.place]), kind="stable")


def _price(rise: Float[np.ndarray, " moves"], more: Float[np.ndarray, " moves"]) -> float:
    """Return the price of a millisecond at which a point is about as good as its neighbours."""
    saves, spends = (rise > 0) & (more < 0), (rise < 0) & (more > 0)
    prices = [
        *(rise[saves] / -more[saves])[:, None].min(axis=0, initial=np.inf),
        *(-rise[spends] / more[spends])[:, None].max(axis=0, initial=0.0),
    ]
    known = [price for price in prices if 0.0 < price < np.inf]
    return float(np.exp(np.mean(np.log(known)))) if known else 0.0
