"""EvoPress: the best candidate, with levels switched between groups."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.levels import LevelGrid, plateau_levels
from autoprune.strategy.population import evaluated
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import reach, target_ms


class EvoPress(CandidateSampler):
    """Switches levels of the best candidate so that the budget stays [Sieberling2025evopress].

    A switch makes one group a level wider and another one as many levels narrower as that costs;
    blocks take part, a dropped one coming back or a kept one leaving. A child has one to three
    switches, mostly one. The search starts at the uniform candidate, and only what is better than
    the best so far becomes the parent.

    What we changed: in the paper a level costs the same everywhere, so that exactly one level up
    and one down keep the budget; here the second group goes down until the latency fits, and what
    is left is scaled. There is no generation that workers would wait for. Rough losses of
    evaluations that ended early, which take the place of the paper's selection on ever more data,
    never make a parent where there is another. Without a budget every trial aims at another
    latency, and its parent is the best, for its own latency, of the nearest ones.

    References:
        [Sieberling2025evopress] Sieberling, Kuznedelev, Kurtic, Alistarh. EvoPress: Accurate
        Dynamic Model Compression via Evolutionary Search. ICML 2025.
    """

    def __init__(
        self, problem: Problem, *, seed: int, max_switches: int = 3, neighbours: int = 8
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            max_switches: Most switches of a child; their number is the smaller of two uniform
                draws.
            neighbours: Evaluated candidates among which the parent is chosen without a budget:
                those nearest in the logarithm of the latency.

        Raises:
            SettingsError: A number is out of its range.
        """
        super().__init__(problem, seed=seed)
        if max_switches < 1 or neighbours < 1:
            raise SettingsError(
                "sampler 'evopress': expected max_switches and neighbours >= 1, got "
                f"{max_switches} and {neighbours}"
            )
        self.max_switches = max_switches
        self.neighbours = neighbours

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return a child of the best, or the uniform candidate to start with."""
        limit = target_ms(self.problem, trial.number)
        population = evaluated(self.problem, study)
        space = self.problem.space
        if not len(population):
            return reach(self.problem, space.smallest(), limit)
        parent = int(population.ranked(limit, self.neighbours)[0])
        best = reach(self.problem, population.candidate(parent), limit)
        widths, keep = space.widths([best])[0], space.keep([best])[0]
        switches = int(rng.integers(1, self.max_switches, 2, endpoint=True).min())
        for _ in range(switches):
            widths, keep = self.switched(widths, keep, limit, rng)
        return reach(self.problem, space.candidates(widths[None], keep[None])[0], limit)

    def switched(
        self,
        widths: Int[np.ndarray, " groups"],
        keep: Bool[np.ndarray, " blocks"],
        limit_ms: float,
        rng: np.random.Generator,
    ) -> tuple[Int[np.ndarray, " groups"], Bool[np.ndarray, " blocks"]]:
        """Return widths and kept blocks after one switch; over the limit where none keeps it.

        Args:
            widths: Kept units.
            keep: Kept blocks.
            limit_ms: Latency in ms that the second half of the switch comes back to.
            rng: Source of randomness.
        """
        space, grid = self.problem.space, self._grid
        groups = len(widths)
        active = space.active(keep[None])[0]
        level = grid.nearest(widths[None])[0]
        gone = np.flatnonzero(~keep)
        wider = np.concatenate([np.flatnonzero(active & (level > 0)), groups + gone])
        widths, keep = widths.copy(), keep.copy()
        first = int(rng.choice(wider)) if len(wider) else -1
        if first >= groups:
            keep[first - groups] = True
        elif first >= 0:
            widths[first] = grid.widths[first, level[first] - 1]
        narrower = np.flatnonzero(active & (level < grid.counts - 1))
        leaving = np.flatnonzero(keep & np.array(space.droppable, bool))
        lower = np.concatenate([narrower, groups + leaving])
        lower = lower[lower != first]
        if not len(lower):
            return widths, keep
        second = int(rng.choice(lower))
        if second >= groups:
            keep[second - groups] = False
            return widths, keep
        choices = grid.widths[second, level[second] + 1 : grid.counts[second]]
        rows = np.repeat(widths[None], len(choices), axis=0)
        rows[:, second] = choices
        fits = self.problem.predict(rows, np.repeat(keep[None], len(rows), axis=0)) <= limit_ms
        return (rows[int(np.argmax(fits))] if fits.any() else rows[-1]), keep

    @cached_property
    def _grid(self) -> LevelGrid:
        return plateau_levels(self.problem)


@SAMPLERS.register("evopress")
def evopress(
    problem: Problem, *, seed: int, max_switches: int = 3, neighbours: int = 8
) -> BaseSampler:
    """Return :class:`EvoPress`.

    Args:
        problem: What is searched.
        seed: At least 0.
        max_switches: Most switches of a child; their number is the smaller of two uniform draws.
        neighbours: Evaluated candidates among which the parent is chosen without a budget.

    Raises:
        SettingsError: A number is out of its range.
    """
    return EvoPress(problem, seed=seed, max_switches=max_switches, neighbours=neighbours)
