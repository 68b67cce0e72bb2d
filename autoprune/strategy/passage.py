"""A network as an agent passes through it: one decision after the other, within a latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32

from autoprune.network.ops import Op
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate

#: Widths of a group among which the wall is searched, at most.
_WIDTHS = 32


class Passage:
    """The network as the agent sees it: one place after the other, on the exact latency.

    A place is a searched group, or a block that may be dropped, which comes just before the first
    group inside it. Dropping a block skips the groups inside.

    The state is the paper's eleven features: the place's number t, output channels n, input
    channels c, height and width of the input, stride, kernel, FLOPs (multiply-accumulates of the
    operators that write the group, or that are in the block), then what is reduced already, what
    the rest could still give, both as fractions of the dense latency, and the last action. The
    first eight are scaled to [0, 1] over the places; a block's stride and kernel are 0. Without a
    problem's operators a group's size stands for its channels and the latency that it saves alone
    for its FLOPs.
    """

    def __init__(self, problem: Problem) -> None:
        """Store parameters."""
        self.problem = problem

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Groups by index, blocks by the number of groups plus theirs, in the order of decision."""
        space = self.problem.space
        count = len(space.dimensions)
        order = [(float(g), 1, g) for g, dim in enumerate(space.dimensions) if dim.searched]
        for block in np.flatnonzero(space.droppable if space.max_dropped != 0 else []):
            inside = space.inside[block] if space.inside else ()
            order.append((min(inside, default=count), 0, count + int(block)))
        return tuple(place for _, _, place in sorted(order))

    def walk(
        self, decide: Callable[[int, Float32[np.ndarray, "1 eleven"]], float], target_ms: float
    ) -> Candidate:
        """Return the candidate that a policy builds within a latency.

        The wall: a group gets the widest width up to the wanted one for which the network still
        meets the target with everything undecided at its narrowest. A block goes where less is
        wanted of it than half of the share of blocks that may go, so that uniform actions drop half
        of what may; it stays only where the target can still be met.

        Args:
            decide: Step and state to the fraction of the place that should stay.
            target_ms: Latency in ms.
        """
        space = self.problem.space
        ratios, dropped = np.zeros(len(space.sizes)), np.zeros(len(space.blocks), bool)
        last = 1.0
        for step, place in enumerate(self.places):
            if not self._exists(place, dropped):
                continue
            options = self._options(place, dropped)
            ms = self._predict(ratios, dropped, step, options)
            state = self._state(step, ms[0], ms[1], last)
            wanted = decide(step, state)
            fits = ms[2:] <= target_ms
            if place >= len(space.sizes):
                wanted = float(wanted >= self._drop_below)
            nearest = int(np.argmin(np.abs(options - wanted)))
            within = np.flatnonzero(fits[: nearest + 1])
            # Where latency falls with the width, something wider may be the only way.
            chosen = int(within[-1]) if len(within) else int(np.argmin(ms[2:]))
            last = float(options[chosen])
            _set(place, last, ratios, dropped)
        return space.candidates(*space.realise(ratios[None], dropped[None]))[0]

    def retrace(
        self, candidate: Candidate
    ) -> tuple[Float32[np.ndarray, "steps eleven"], Float32[np.ndarray, "steps 1"]]:
        """Return the states and actions that lead to a candidate."""
        space = self.problem.space
        ratios, dropped = np.zeros(len(space.sizes)), np.zeros(len(space.blocks), bool)
        gone, widths = ~space.keep([candidate])[0], space.widths([candidate])[0]
        steps: list[int] = []
        actions: list[float] = []
        rows: list[tuple[Float[np.ndarray, " groups"], Bool[np.ndarray, " blocks"]]] = []
        for step, place in enumerate(self.places):
            if not self._exists(place, dropped):
                continue
            rows += [(ratios.copy(), dropped.copy()), self._rest(ratios, dropped, step)]
            if place < len(widths):
                action = float(widths[place] / space.sizes[place])
            else:
                action = float(not gone[place - len(widths)])
            steps.append(step)
            actions.append(action)
            _set(place, action, ratios, dropped)
        ms = self._latency(rows)
        states = [
            self._state(step, ms[2 * n], ms[2 * n + 1], last)
            for n, (step, last) in enumerate(zip(steps, [1.0, *actions], strict=False))
        ]
        return (
            np.concatenate([*states, np.zeros((0, 11), np.float32)]),
            np.array(actions, np.float32).reshape(-1, 1),
        )

    @property
    def _drop_below(self) -> float:
        space = self.problem.space
        most = len(space.blocks) if space.max_dropped is None else space.max_dropped
        return 0.5 * min(most / max(sum(space.droppable), 1), 1.0)

    def _exists(self, place: int, dropped: Bool[np.ndarray, " blocks"]) -> bool:
        space = self.problem.space
        if place < len(space.sizes):
            return bool(space.active(~dropped[None])[0, place])
        return space.max_dropped is None or int(dropped.sum()) < space.max_dropped

    def _options(self, place: int, dropped: Bool[np.ndarray, " blocks"]) -> Float[np.ndarray, " n"]:
        """Return the fractions that may stay, ascending."""
        space = self.problem.space
        if place >= len(space.sizes):
            return np.array([0.0, 1.0])
        widths = space.dimensions[place].widths
        if len(widths) > _WIDTHS:
            widths = widths[np.linspace(0, len(widths) - 1, _WIDTHS).astype(np.int64)]
        fractions: Float[np.ndarray, " n"] = widths / space.sizes[place]
        return fractions

    def _predict(
        self,
        ratios: Float[np.ndarray, " groups"],
        dropped: Bool[np.ndarray, " blocks"],
        step: int,
        options: Float[np.ndarray, " n"],
    ) -> Float[np.ndarray, " m"]:
        """Return ms with the rest unpruned, at its narrowest, and so with each option taken."""
        rows = [(ratios, dropped), self._rest(ratios, dropped, step)]
        for option in options:
            tried, gone = ratios.copy(), dropped.copy()
            _set(self.places[step], float(option), tried, gone)
            rows.append(self._rest(tried, gone, step + 1))
        return self._latency(rows)

    def _latency(
        self, rows: Sequence[tuple[Float[np.ndarray, " groups"], Bool[np.ndarray, " blocks"]]]
    ) -> Float[np.ndarray, " n"]:
        space = self.problem.space
        if not rows:
            return np.zeros(0)
        ratios, dropped = np.stack([r for r, _ in rows]), np.stack([d for _, d in rows])
        return self.problem.predict(*space.realise(ratios, dropped))

    def _rest(
        self, ratios: Float[np.ndarray, " groups"], dropped: Bool[np.ndarray, " blocks"], step: int
    ) -> tuple[Float[np.ndarray, " groups"], Bool[np.ndarray, " blocks"]]:
        """Return the decisions so far with the rest as in the fastest network."""
        space = self.problem.space
        rest = np.array([p for p in self.places[step:] if p < len(space.sizes)], np.int64)
        narrow, gone = ratios.copy(), dropped.copy()
        narrow[rest] = 1.0 - space.smallest_widths[rest] / space.sizes[rest]
        blocks = [p - len(space.sizes) for p in self.places[step:] if p >= len(space.sizes)]
        fast = [b for b in blocks if self.problem.fastest[0].dropped[b]]
        left = len(blocks) if space.max_dropped is None else space.max_dropped - int(gone.sum())
        gone[fast[: max(left, 0)]] = True
        return narrow, gone

    def _state(
        self, step: int, rest_full_ms: float, rest_narrow_ms: float, last: float
    ) -> Float32[np.ndarray, "1 eleven"]:
        dense_ms = self.problem.dense_ms
        reduced = 1.0 - rest_full_ms / dense_ms
        rest = (rest_full_ms - rest_narrow_ms) / dense_ms
        return np.array([[*self._features[step], reduced, rest, last]], np.float32)

    @cached_property
    def _features(self) -> Float[np.ndarray, "places eight"]:
        rows = [(float(step), *self._layer(place)) for step, place in enumerate(self.places)]
        table = np.array(rows, float).reshape(len(rows), 8)
        if not len(table):
            return table
        low, span = table.min(axis=0), np.ptp(table, axis=0)
        scaled: Float[np.ndarray, "places eight"] = (table - low) / np.where(span > 0, span, 1.0)
        return scaled

    def _layer(self, place: int) -> tuple[float, ...]:
        """Return n, c, h, w, stride, kernel and FLOPs of a place."""
        space, ops = self.problem.space, self.problem.ops
        group = place if place < len(space.sizes) else -1
        if ops is None:
            alone = np.zeros(len(space.sizes)), np.zeros(len(space.blocks), bool)
            _set(place, 0.0 if group < 0 else 1.0 - space.dimensions[place].max_ratio, *alone)
            saved = self.problem.dense_ms - float(self._latency([alone])[0])
            size = float(space.sizes[place]) if group >= 0 else 0.0
            return (size, size, 1.0, 1.0, float(group >= 0), float(group >= 0), saved)
        if group >= 0:
            own = [op for op in ops.ops if any(g == group for g, _ in op.cout.terms)]
            own = own or [op for op in ops.ops if any(g == group for g, _ in op.cin.terms)]
        else:
            own = [op for op in ops.ops if op.block == place - len(space.sizes)]
        working = [op for op in own if op.kind in ("conv", "linear", "matmul")] or own
        if not working:
            return (0.0,) * 7
        first: Op = working[0]
        macs = float(dataclasses.replace(ops, ops=tuple(own), parameters=()).macs()[0])
        shape = (float(first.stride[0]), float(first.kernel[0])) if group >= 0 else (0.0, 0.0)
        channels = (float(first.cout.at(ops.group_sizes)), float(first.cin.at(ops.group_sizes)))
        return (*channels, *map(float, first.in_size), *shape, macs)


def _set(
    place: int,
    stays: float,
    ratios: Float[np.ndarray, " groups"],
    dropped: Bool[np.ndarray, " blocks"],
) -> None:
    """Write the decision on a place into ratios and drops."""
    if place < len(ratios):
        ratios[place] = 1.0 - stays
    else:
        dropped[place - len(ratios)] = stays < 0.5
