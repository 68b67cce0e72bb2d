"""Greedy walks from the unpruned network, replayed from what a study knows."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.damage import Damage
from autoprune.strategy.problem import Problem
from autoprune.strategy.results import Losses, Results
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate

#: Widths of one group that a move is chosen from, at most.
_WIDTHS = 32
#: Savings below this fraction of the latency are noise of a sum's last digits.
_SAME = 1e-9
#: Added to every increase of the loss where it is divided by latency, in nats: of moves that cost
#: nothing the one that saves most wins (methods.md's constant for NetAdapt).
_NOTHING = 1e-6


@dataclasses.dataclass(frozen=True)
class State:
    """Where a walk stands.

    Attributes:
        candidate: The candidate, snapped.
        latency_ms: Its predicted latency in ms.
    """

    candidate: Candidate
    latency_ms: float


@dataclasses.dataclass(frozen=True)
class Move:
    """One group narrower, or one block dropped.

    Attributes:
        place: Index of the group, or the number of groups plus the index of the block.
        to: Where it leads; faster than where it starts.
        prior: Damage expected of it, above 0, in units that only compare moves of one place.
    """

    place: int
    to: State
    prior: float


@dataclasses.dataclass(frozen=True)
class Walk:
    """How far a study takes a walk.

    Attributes:
        path: The states passed, from the start.
        wanted: The candidate whose loss has to be known next; ``None`` where no move is left, or
            where the walk can only wait for pending evaluations.
    """

    path: tuple[State, ...]
    wanted: Candidate | None


def replay(
    start: State,
    moves: Callable[[State, int], Sequence[Move]],
    losses: Losses,
    *,
    per_ms: bool,
    lazy: bool,
) -> Walk:
    """Walk greedily as far as losses are known.

    At each state the move with the smallest cost is committed: the increase of the loss, or that
    increase per ms saved. The walk is a function of the losses alone, whatever the order in which
    they became known.

    With ``lazy`` a move is evaluated again only where its last known cost makes it the best
    [Minoux1978accelerated]; the last cost is scaled by what the prior expects of the move now and
    then. Without, all moves of a state are evaluated before one is committed.

    A pending loss is taken to be what its move was expected to cost, so that the walk goes on
    ahead of what is known; where nothing was expected, its move is not chosen. A failed
    evaluation teaches nothing and its move is not chosen from this state.

    Args:
        start: The first state.
        moves: Moves from a state, given also how many were made before; each strictly faster, none
            where the walk ends.
        losses: What is known.
        per_ms: Whether moves compete by loss per ms saved.
        lazy: Whether old costs may spare evaluations.

    References:
        [Minoux1978accelerated] Minoux. Accelerated greedy algorithms for maximizing submodular set
        functions. Optimization Techniques, 1978.
    """
    path = [start]
    base = losses(start.candidate)
    if base is None:
        return Walk((start,), start.candidate)
    chooser = _Chooser(losses, per_ms=per_ms, lazy=lazy)
    # Every move is strictly faster and leaves fewer widths, so this ends.
    while options := moves(path[-1], len(path) - 1):
        choice = chooser.choose(path[-1], base, options)
        if choice.wanted is not None or choice.move is None:
            return Walk(tuple(path), choice.wanted)
        path.append(choice.move.to)
        base = choice.loss
    return Walk(tuple(path), None)


@dataclasses.dataclass(frozen=True)
class _Choice:
    move: Move | None = None
    loss: float = math.inf
    cost: float = math.inf
    wanted: Candidate | None = None


class _Chooser:
    """Remembers what moves have cost during one replay."""

    def __init__(self, losses: Losses, *, per_ms: bool, lazy: bool) -> None:
        self.losses = losses
        self.per_ms = per_ms
        self.lazy = lazy
        # By place: the last known cost, and what the prior expected then.
        self._last: dict[int, tuple[float, float]] = {}

    def choose(self, state: State, base: float, options: Sequence[Move]) -> _Choice:
        """Return the best move, or the candidate whose loss is needed to find it."""
        if not math.isfinite(base):
            # The start's own loss is not known: what costs least costs nothing.
            known = [self.losses(move.to.candidate) for move in options]
            base = min(
                (loss for loss in known if loss is not None and math.isfinite(loss)), default=0.0
            )
        best = _Choice()
        ranked = sorted((self._estimate(state, move), move.place, move) for move in options)
        for estimate, _, move in ranked:
            if self.lazy and best.cost <= estimate:
                break
            loss = self.losses(move.to.candidate)
            if loss is None:
                return _Choice(wanted=move.to.candidate)
            choice = self._read(state, base, move, loss, estimate)
            best = min(best, choice, key=lambda c: c.cost)
        return best

    def _read(self, state: State, base: float, move: Move, loss: float, estimate: float) -> _Choice:
        weight = self._weight(state, move)
        if math.isinf(loss):
            return _Choice()
        if math.isnan(loss):
            if math.isinf(estimate):
                self._last.setdefault(move.place, (math.inf, 1.0))
                return _Choice()
            return _Choice(move, base + estimate / weight, estimate)
        cost = self._cost(loss - base) * weight
        self._last[move.place] = (cost, move.prior * weight)
        return _Choice(move, loss, cost)

    def _estimate(self, state: State, move: Move) -> float:
        """Return the expected cost; -inf for a move that has to be evaluated first."""
        if move.place not in self._last:
            return -math.inf
        cost, expected = self._last[move.place]
        # The prior says how costs grow, nothing about gains.
        return cost * move.prior * self._weight(state, move) / expected if cost > 0 else cost

    def _cost(self, increase: float) -> float:
        return max(increase, 0.0) + _NOTHING if self.per_ms else increase

    def _weight(self, state: State, move: Move) -> float:
        return 1.0 / (state.latency_ms - move.to.latency_ms) if self.per_ms else 1.0


class GreedySampler(CandidateSampler):
    """Proposes what a greedy walk from the unpruned network has to know next.

    Without a budget the evaluated candidates are the walk's states themselves: the path is the
    front, and moves compete by the rule of the method.

    With a budget every state over it is evaluated as :func:`~autoprune.strategy.budget.project`
    completes it: the rest scaled uniformly until it fits. A step is then judged by where it leads
    and not by how little it hurts alone, and all moves save the same latency in the end; so the
    move with the smallest loss at the budget is committed, and loss per ms would mean nothing. The
    walk starts at the uniform network and ends where its own state meets the budget.

    Where the walk is over or can only wait, neighbours are proposed: of the path's best state with
    a budget, of all its states in turn without.

    Rough losses of evaluations that were stopped early count as they are: they were stopped
    because they are bad, and the walk only has to know that.
    """

    def __init__(self, problem: Problem, *, seed: int, per_ms: bool, lazy: bool) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0; it decides how repeats are varied.
            per_ms: Whether moves compete by loss per ms saved where there is no budget.
            lazy: Whether a move is evaluated again only where it could be the best; see
                :func:`replay`.
        """
        super().__init__(problem, seed=seed)
        self.per_ms = per_ms
        self.lazy = lazy
        self._results = Results(problem, fill=self.adjusts)
        # Follows from the problem alone, so it may be lost at any time.
        self._moves: dict[tuple[Candidate, int], Sequence[Move]] = {}

    @abc.abstractmethod
    def moves(self, state: State, step: int) -> Sequence[Move]:
        """Return the moves from a state over the budget.

        Args:
            state: Where the walk stands.
            step: Moves made before.
        """

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the candidate the walk has to know, or one of its states to be varied."""
        losses = self._results.losses(study, trial)
        walk = replay(
            State(self.problem.space.dense(), self.problem.dense_ms),
            self._moves_from,
            losses,
            per_ms=self.per_ms and self.problem.budget_ms is None,
            lazy=self.lazy,
        )
        if walk.wanted is not None:
            return walk.wanted
        if self.problem.budget_ms is None:
            return walk.path[trial.number % len(walk.path)].candidate

        def loss(state: State) -> float:
            value = losses(state.candidate)
            return value if value is not None and math.isfinite(value) else math.inf

        # Reversed: where nothing is known, the end of the walk.
        return min(reversed(walk.path), key=loss).candidate

    def _moves_from(self, state: State, step: int) -> Sequence[Move]:
        budget = self.problem.budget_ms
        if budget is not None and state.latency_ms <= budget:
            return ()
        key = (state.candidate, step)
        if key not in self._moves:
            self._moves[key] = self.moves(state, step)
        return self._moves[key]


def narrowings(
    problem: Problem,
    state: State,
    *,
    floor: Int[np.ndarray, " groups"],
    ceiling: Int[np.ndarray, " groups"],
    limit_ms: float,
) -> list[Move]:
    """Return for each group the move to its widest width within a latency limit.

    A group that cannot meet the limit alone moves to its fastest width, as far as it saves
    anything; one that saves nothing has no move.

    Args:
        problem: Space and latency.
        state: Where the moves start.
        floor: Width no move goes below, in units.
        ceiling: Width no move stays above, in units.
        limit_ms: Latency in ms; what saves nothing is beyond every limit.
    """
    space = problem.space
    limit = min(limit_ms, state.latency_ms * (1.0 - _SAME))
    widths, keep = space.widths([state.candidate])[0], space.keep([state.candidate])
    choices = [
        _spread(dim.widths[(dim.widths >= low) & (dim.widths <= high) & (dim.widths < width)])
        for dim, low, high, width in zip(space.dimensions, floor, ceiling, widths, strict=True)
    ]
    active = space.active(keep)[0]
    groups = np.array([g for g, c in enumerate(choices) if active[g] for _ in c], np.int64)
    if not len(groups):
        return []
    targets = np.concatenate([c for g, c in enumerate(choices) if active[g]])
    rows = np.repeat(widths[None], len(groups), axis=0)
    rows[np.arange(len(groups)), groups] = targets
    ms = problem.predict(rows, np.repeat(keep, len(rows), axis=0))
    chosen = []
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        fits = own[ms[own] <= limit]
        # Widths ascend: the last that fits is the widest, the first fastest is not.
        best = fits[-1] if len(fits) else own[len(own) - 1 - int(np.argmin(ms[own][::-1]))]
        if ms[best] < state.latency_ms * (1.0 - _SAME):
            chosen.append(best)
    index = np.array(chosen, np.int64)
    return _as_moves(
        problem, state, groups[index], rows[index], np.repeat(keep, len(index), axis=0), ms[index]
    )


def drops(problem: Problem, state: State) -> list[Move]:
    """Return for each block that may go the move that drops it, as far as it saves latency."""
    space = problem.space
    widths, keep = space.widths([state.candidate]), space.keep([state.candidate])
    free = np.flatnonzero(keep[0] & np.array(space.droppable, bool))
    if not len(free) or (space.max_dropped is not None and (~keep).sum() >= space.max_dropped):
        return []
    kept = np.repeat(keep, len(free), axis=0)
    kept[np.arange(len(free)), free] = False
    rows, kept = space.realise(np.repeat(1.0 - widths / space.sizes, len(free), axis=0), ~kept)
    ms = problem.predict(rows, kept)
    saves = ms < state.latency_ms * (1.0 - _SAME)
    places = len(space.dimensions) + free
    return _as_moves(problem, state, places[saves], rows[saves], kept[saves], ms[saves])


def _as_moves(
    problem: Problem,
    state: State,
    places: Int[np.ndarray, " n"],
    widths: Int[np.ndarray, "n groups"],
    keep: Bool[np.ndarray, "n blocks"],
    ms: Float[np.ndarray, " n"],
) -> list[Move]:
    space = problem.space
    damage = Damage.quadratic(space)
    before = damage.at(space, space.widths([state.candidate]), space.keep([state.candidate]))[0]
    # A dropped block takes the damage of its groups along and may have none left of its own.
    priors = np.maximum(damage.at(space, widths, keep) - before, 1e-6)
    return [
        Move(place, State(candidate, latency_ms), prior)
        for place, candidate, latency_ms, prior in zip(
            places.tolist(),
            space.candidates(widths, keep),
            ms.tolist(),
            priors.tolist(),
            strict=True,
        )
    ]


def _spread(widths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Return at most a fixed number of the widths, evenly spread, both ends among them."""
    if len(widths) <= _WIDTHS:
        return widths
    chosen: Int[np.ndarray, " m"] = widths[
        np.linspace(0, len(widths) - 1, _WIDTHS).astype(np.int64)
    ]
    return chosen
