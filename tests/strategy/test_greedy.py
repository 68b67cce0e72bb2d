import math

import numpy as np
import pytest

from autoprune.strategy.greedy import Move, State, drops, narrowings, replay
from autoprune.strategy.space import Candidate
from autoprune.testing.samplers import MadeUpLatency, made_up_loss, made_up_problem

PROBLEMS = [
    # Bumps, so that no two moves save the same.
    made_up_problem(3, 16, latency=MadeUpLatency(bumps=0.1)),
    made_up_problem(3, 16, latency=MadeUpLatency(padding=4), multiple=1),
    made_up_problem(4, 12, latency=MadeUpLatency(padding=4, bumps=0.4), multiple=1),
]


def state_of(problem, widths, dropped=()):
    """Return the state with these widths and dropped blocks."""
    space = problem.space
    keep = np.ones((1, len(space.blocks)), bool)
    keep[0, list(dropped)] = False
    candidate = space.candidates(np.array([widths]), keep)[0]
    return State(candidate, float(problem.latency_ms([candidate])[0]))


def changed(problem, state, place, value):
    """Return the state after one group got a width, or one block was dropped."""
    space = problem.space
    ratios, flags = list(state.candidate.ratios), list(state.candidate.dropped)
    if place < len(ratios):
        ratios[place] = 1.0 - value / space.sizes[place]
    else:
        flags[place - len(ratios)] = True
    candidate = space.snap(Candidate(tuple(ratios), tuple(flags)))
    return State(candidate, float(problem.latency_ms([candidate])[0]))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("limit", [0.99, 0.9, 0.5])
def test_narrowings_are_the_widest_widths_within_the_limit(problem, limit):
    space = problem.space
    state = state_of(problem, (space.sizes * 0.75).astype(int), dropped=[1])
    floor = np.array([4, 2] + [4] * (len(space.sizes) - 2))
    ceiling = space.widths([state.candidate])[0] - 1
    limit_ms = limit * state.latency_ms
    expected = {}
    for group, dim in enumerate(space.dimensions):
        if group == 2:
            continue  # inside the dropped block
        tried = [
            changed(problem, state, group, width)
            for width in dim.widths[::-1].tolist()
            if floor[group] <= width <= ceiling[group]
        ]
        within = [after for after in tried if after.latency_ms <= limit_ms * (1 + 1e-12)]
        best = within[0] if within else min(tried, key=lambda after: after.latency_ms)
        if best.latency_ms < state.latency_ms:
            expected[group] = best.candidate
    moves = narrowings(problem, state, floor=floor, ceiling=ceiling, limit_ms=limit_ms)
    assert {move.place: move.to.candidate for move in moves} == expected
    assert len(expected) >= 2
    for move in moves:
        assert move.to.latency_ms == pytest.approx(problem.latency_ms([move.to.candidate])[0])
        assert move.prior > 0


def test_drops_are_all_blocks_that_may_still_go():
    problem = made_up_problem(4, 16)
    groups = len(problem.space.dimensions)
    state = state_of(problem, problem.space.sizes, dropped=[1])
    assert {move.place: move.to for move in drops(problem, state)} == {
        groups + block: changed(problem, state, groups + block, None) for block in (0, 2, 3)
    }
    # Half of the blocks may go.
    assert drops(problem, state_of(problem, problem.space.sizes, dropped=[0, 1])) == []


def moves_of(problem):
    """Return moves of one grid step, and dropped blocks."""

    def moves(state, step):
        widths = problem.space.widths([state.candidate])[0]
        return [
            *narrowings(
                problem,
                state,
                floor=problem.space.smallest_widths,
                ceiling=widths - 1,
                limit_ms=state.latency_ms,
            ),
            *drops(problem, state),
        ]

    return moves


def naive(problem, loss, *, per_ms):
    """Evaluate every move of every step; commit the cheapest, the first place of equal ones."""
    path, moves = [state_of(problem, problem.space.sizes)], moves_of(problem)
    while options := moves(path[-1], 0):

        def cost(move, here=path[-1]):
            increase = loss(move.to.candidate) - loss(here.candidate)
            if not per_ms:
                return increase
            return (max(increase, 0) + 1e-6) / (here.latency_ms - move.to.latency_ms)

        path.append(min(options, key=lambda move: (cost(move), move.place)).to)
    return tuple(path)


def noisy(problem):
    """Return a loss without any structure that greedy walks could count on."""

    def loss(candidate):
        noise = int(candidate.key, 16) % 1000 / 1000.0
        return made_up_loss(problem.space, candidate) + 3.0 * noise

    return loss


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("per_ms", [False, True])
def test_without_laziness_it_is_the_plain_greedy_walk(problem, per_ms):
    loss = noisy(problem)
    start = state_of(problem, problem.space.sizes)
    walk = replay(start, moves_of(problem), loss, per_ms=per_ms, lazy=False)
    assert walk.path == naive(problem, loss, per_ms=per_ms)
    assert walk.wanted is None
    assert len(walk.path) > 5


@pytest.mark.parametrize("lazy", [False, True])
def test_asking_for_one_loss_at_a_time_walks_the_same_path(lazy):
    problem = PROBLEMS[1]
    loss, known = noisy(problem), {}
    start = state_of(problem, problem.space.sizes)
    previous = ()
    for _ in range(2000):
        walk = replay(start, moves_of(problem), known.get, per_ms=True, lazy=lazy)
        # What was committed stays committed.
        assert walk.path[: len(previous)] == previous
        previous = walk.path
        if walk.wanted is None:
            break
        assert walk.wanted not in known
        known[walk.wanted] = loss(walk.wanted)
    assert walk == replay(start, moves_of(problem), loss, per_ms=True, lazy=lazy)


def table_moves(losses, ms=None):
    """Return moves that take away one of each group's units, and the loss of convex curves."""
    levels = [len(curve) for curve in losses]

    def state(widths):
        ratios = tuple(1 - w / level for w, level in zip(widths, levels, strict=True))
        return State(Candidate(ratios), float(sum(widths)))

    def widths_of(candidate):
        return [round((1 - r) * level) for r, level in zip(candidate.ratios, levels, strict=True)]

    def moves(here, step):
        widths = widths_of(here.candidate)
        return [
            Move(g, state([w - (i == g) for i, w in enumerate(widths)]), 1.0)
            for g in range(len(widths))
            if widths[g] > 1
        ]

    def loss(candidate):
        gone = [lv - w for lv, w in zip(levels, widths_of(candidate), strict=True)]
        return float(sum(curve[g] for curve, g in zip(losses, gone, strict=True)))

    return state(levels), moves, loss


def test_lazy_walks_equal_plain_ones_where_costs_only_grow():
    rng = np.random.default_rng(0)
    curves = [np.append(0.0, np.cumsum(np.sort(rng.uniform(size=7)))) for _ in range(6)]
    start, moves, loss = table_moves(curves)
    asked = []
    lazy = replay(start, moves, lambda c: asked.append(c) or loss(c), per_ms=True, lazy=True)
    plain = replay(start, moves, loss, per_ms=True, lazy=False)
    assert lazy.path == plain.path
    assert len(plain.path) == 6 * 7 + 1
    # All moves at first, afterwards about two a step in place of up to six.
    assert len(set(asked)) < 6 + 3 * 42


def test_pending_losses_do_not_hold_up_the_walk():
    curves = [np.array([0.0, 1.0, 3.0, 6.0]) * (1 + g) for g in range(3)]
    start, moves, loss = table_moves(curves)
    known = {start.candidate: 0.0}
    asked = []
    for _ in range(8):
        walk = replay(start, moves, known.get, per_ms=False, lazy=False)
        assert walk.wanted is not None
        asked.append(walk.wanted)
        # The first three are told their losses, the others stay pending.
        known[walk.wanted] = loss(walk.wanted) if len(asked) <= 3 else math.nan
    assert len(set(asked)) == 8
    told = replay(start, moves, lambda c: loss(c) if c in known else None, per_ms=False, lazy=False)
    plain = replay(start, moves, loss, per_ms=False, lazy=False)
    assert told.path == plain.path[: len(told.path)]


def test_all_pending_is_waited_for_and_all_failed_ends_the_walk():
    start, moves, _ = table_moves([np.arange(4.0), np.arange(4.0)])
    for value in (math.nan, math.inf):
        walk = replay(start, moves, lambda c, v=value: v, per_ms=True, lazy=True)
        assert walk.wanted is None
        assert walk.path == (start,)


@pytest.mark.parametrize("lazy", [False, True])
def test_failed_moves_are_not_made(lazy):
    start, moves, loss = table_moves([np.arange(4.0), np.arange(4.0) * 2])
    # Whatever narrows the cheaper group fails.
    walk = replay(
        start,
        moves,
        lambda c: math.inf if c.ratios[0] > 0 else loss(c),
        per_ms=False,
        lazy=lazy,
    )
    assert [round(s.candidate.ratios[1] * 4) for s in walk.path] == [0, 1, 2, 3]
    assert all(state.candidate.ratios[0] == 0 for state in walk.path)


def test_an_unknown_start_costs_as_much_as_the_best_move():
    start, moves, loss = table_moves([np.arange(4.0), np.arange(4.0) * 2])
    whole = replay(start, moves, loss, per_ms=True, lazy=False)
    for value in (math.nan, math.inf):
        walk = replay(
            start,
            moves,
            lambda c, v=value: v if c == start.candidate else loss(c),
            per_ms=True,
            lazy=False,
        )
        assert walk.path == whole.path
