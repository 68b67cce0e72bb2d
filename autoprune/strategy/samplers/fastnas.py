"""FastNAS: measure what each group can bear alone, then treat all groups alike."""

from __future__ import annotations

import math
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.budget import Points
from autoprune.strategy.ladder import Ladder
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.results import Losses, Results
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate

#: Fractions of its largest ratio that a group may lose: multiples of 5 %, as published.
_CHOICES = np.linspace(0.0, 1.0, 21)


class FastNAS(CandidateSampler):
    """Gives every group the narrowest width whose sensitivity is below one threshold for all.

    First comes a map of sensitivities: the loss with one group narrower, or one block dropped, less
    the loss of the unpruned network. Then the threshold is found on the exact latency for each
    rung of a :class:`~autoprune.strategy.ladder.Ladder` of targets, so that the largest sensitivity
    is as small as the target allows. That is the FastNAS of NVIDIA's ModelOpt
    [NVIDIA2025modelopt].

    As published the narrowest widths come first, a wider one of a group that bears a narrow one is
    not evaluated, and sensitivity never falls with the ratio. Ours are: a few widths stand for all
    multiples of 5 %, because 20 evaluations per group are more than a whole search has, and between
    them sensitivity is linear in the squared ratio; blocks are measured where there are evaluations
    left for them, else they stay; a failed evaluation counts as a width that cannot be borne, a
    pending one is left out until it is known, and a group of which nothing is known counts as the
    median one.

    With a budget a narrowed group is evaluated as it is completed to the budget, and what it saves
    alone leaves the rest wider than in the uniform network. That relief is added back: a price per
    ms times the latency saved, at the smallest price that makes no sensitivity negative.

    References:
        [NVIDIA2025modelopt] NVIDIA. TensorRT Model Optimizer, pruning guide, 2025.
    """

    def __init__(self, problem: Problem, *, seed: int, evaluations: int, tolerance: float) -> None:
        """Store parameters; see :func:`fastnas`."""
        super().__init__(problem, seed=seed)
        self.evaluations = evaluations
        self.tolerance = tolerance
        self._results = Results(problem, fill=self.adjusts)
        # That of the last map; follows from it, so it may be lost at any time.
        self._ladders: dict[bytes, Ladder] = {}

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return what the map lacks, then the first rung that the study does not have."""
        losses = self._results.losses(study, trial)
        probe = self._wanted(losses)
        if probe is not None:
            return probe
        curves = self.curves(losses)
        key = curves.tobytes()
        if key not in self._ladders:
            self._ladders = {key: Ladder(self.problem, partial(self.path, curves))}
        return self._ladders[key].first_new(study, trial)

    def curves(self, losses: Losses) -> Float[np.ndarray, "rows choices"]:
        """Return sensitivities in nats at the multiples of 5 % of the largest ratio.

        A row for each measured group, one for each measured block, whose drop is its largest ratio,
        and the median of the groups, which stands for those that were not measured.
        """
        increases = self._increases(losses)
        smooth = [_curve(*row) for row in zip(self._fractions, increases, strict=True)]
        known = [c for c in smooth[: len(self._groups)] if np.isfinite(c).all()]
        typical = np.median(known, axis=0) if known else _CHOICES**2
        rows = []
        for fractions, values, curve in zip(self._fractions, increases, smooth, strict=True):
            row = np.where(np.isfinite(curve), curve, typical)
            unbearable = fractions[np.isinf(values)].min(initial=math.inf)
            rows.append(np.where(unbearable <= _CHOICES, math.inf, row))
        return np.maximum.accumulate(np.stack([*rows, typical]), axis=1)

    def path(
        self, curves: Float[np.ndarray, "rows choices"], positions: Float[np.ndarray, " n"]
    ) -> Points:
        """Return widths at thresholds that ascend with the position through all sensitivities."""
        space = self.problem.space
        steps = np.unique(curves[np.isfinite(curves)])
        thresholds = np.interp(positions, np.linspace(0.0, 1.0, len(steps)), steps)
        row = np.full(len(space.sizes), len(curves) - 1)
        row[self._groups] = np.arange(len(self._groups))
        bearable = curves[row] <= thresholds[:, None, None]
        ratios = _CHOICES[bearable.sum(axis=2) - 1] * (1.0 - space.smallest_widths / space.sizes)
        alone = curves[len(self._groups) : -1, -1]
        # Of more than may go, the least sensitive.
        first = np.argsort(alone, kind="stable")[: space.max_dropped]
        dropped = np.zeros((len(positions), len(space.blocks)), bool)
        dropped[:, self._blocks[first]] = alone[first] <= thresholds[:, None]
        return space.realise(ratios, dropped)

    def _wanted(self, losses: Losses) -> Candidate | None:
        """Return the next candidate of the map that nobody has asked for."""
        dense = self.problem.space.dense()
        base = losses(dense)
        if base is None:
            return dense
        # With a budget a loss that does not rise says only that the rest gains as much.
        tolerance = self.tolerance if self.problem.budget_ms is None else -math.inf
        for level in reversed(range(self._levels)):
            for probes in self._probes:
                narrower = [losses(probe) for probe in probes[level + 1 :]]
                # Comparisons with what is not a number are false.
                if any(loss is not None and loss - base < tolerance for loss in narrower):
                    continue
                if level < len(probes) and losses(probes[level]) is None:
                    return probes[level]
        return None

    def _increases(self, losses: Losses) -> list[Float[np.ndarray, " _"]]:
        """Return loss increases by place and fraction: inf where it failed, nan if not known."""

        def read(candidate: Candidate) -> float:
            loss = losses(candidate)
            return math.nan if loss is None else loss

        measured = [np.array([read(probe) for probe in probes]) for probes in self._probes]
        finite = np.concatenate([*measured, np.zeros(0)])
        finite = finite[np.isfinite(finite)]
        base = read(self.problem.space.dense())
        if not math.isfinite(base):
            base = float(finite.min(initial=math.inf))
        price = 0.0
        if self.problem.budget_ms is not None:
            gains = [(base - loss) / ms for loss, ms in zip(measured, self._saved_ms, strict=True)]
            flat = np.concatenate([*gains, np.zeros(1)])
            price = float(flat[np.isfinite(flat)].max())
        return [
            np.maximum(loss - base + price * ms, 0.0)
            for loss, ms in zip(measured, self._saved_ms, strict=True)
        ]

    @cached_property
    def _groups(self) -> Int[np.ndarray, " groups"]:
        """Groups that are measured: all of them, or as many as may be, evenly spread."""
        searched = np.flatnonzero([dim.searched for dim in self.problem.space.dimensions])
        count = min(len(searched), self.evaluations)
        chosen: Int[np.ndarray, " groups"] = searched[
            np.arange(count) * len(searched) // max(count, 1)
        ]
        return chosen

    @cached_property
    def _blocks(self) -> Int[np.ndarray, " blocks"]:
        """Blocks that are measured: all that may go, if there are evaluations left for them."""
        space = self.problem.space
        free = np.flatnonzero(space.droppable)
        fit = len(self._groups) + len(free) <= self.evaluations and space.max_dropped != 0
        return free if fit else free[:0]

    @cached_property
    def _levels(self) -> int:
        per_group = (self.evaluations - len(self._blocks)) // max(len(self._groups), 1)
        return min(max(per_group, 1), len(_CHOICES) - 2)

    @cached_property
    def _fractions(self) -> list[Float[np.ndarray, " _"]]:
        """Fractions of its largest ratio at which each place is measured, ascending."""
        inner = np.arange(1, self._levels + 1) / (self._levels + 1)
        return [inner] * len(self._groups) + [np.ones(1)] * len(self._blocks)

    @cached_property
    def _probes(self) -> list[tuple[Candidate, ...]]:
        """The candidates that measure each place, in the order of its fractions."""
        space = self.problem.space
        dense = space.dense()
        found = []
        for group, fractions in zip(self._groups, self._fractions, strict=False):
            ratios = np.zeros((len(fractions), len(space.sizes)))
            ratios[:, group] = fractions * space.dimensions[group].max_ratio
            found.append(
                tuple(space.snap(Candidate(tuple(row), dense.dropped)) for row in ratios.tolist())
            )
        for block in self._blocks:
            flags = tuple(bool(index == block) for index in range(len(space.blocks)))
            found.append((space.snap(Candidate(dense.ratios, flags)),))
        return found

    @cached_property
    def _saved_ms(self) -> list[Float[np.ndarray, " _"]]:
        """Latency in ms that each probe saves alone, above 0."""
        dense_ms = self.problem.dense_ms
        return [
            np.maximum(dense_ms - self.problem.latency_ms(probes), 1e-9 * dense_ms)
            for probes in self._probes
        ]


def _curve(
    fractions: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " choices"]:
    """Return sensitivities at all choices from those at some; nan if none of them is finite."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.full(len(_CHOICES), math.nan)
    squares = np.append(0.0, fractions[finite] ** 2)
    heights = np.append(0.0, values[finite])
    inside = np.interp(_CHOICES**2, squares, heights)
    beyond = heights[-1] * _CHOICES**2 / squares[-1]
    curve: Float[np.ndarray, " choices"] = np.where(squares[-1] < _CHOICES**2, beyond, inside)
    return curve


@SAMPLERS.register("fastnas")
def fastnas(
    problem: Problem, *, seed: int, evaluations: int = 60, tolerance: float = 1e-5
) -> BaseSampler:
    """Return :class:`FastNAS`.

    Args:
        problem: What is searched.
        seed: At least 0; it decides how repeats are varied.
        evaluations: Most evaluations for the map of sensitivities: as many widths of every group as
            that allows, at least one, and of more groups than that an even choice.
        tolerance: A width whose sensitivity in nats is below counts as borne, and wider ones are
            not tried; without effect where there is a budget.
    """
    return FastNAS(problem, seed=seed, evaluations=evaluations, tolerance=tolerance)
