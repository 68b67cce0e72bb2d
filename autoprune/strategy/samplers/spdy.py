"""SPDY: random and locally resampled coefficients of damage curves, solved for the budget."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import Float
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.allocation import Allocator
from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.memory import remember, remembered
from autoprune.strategy.population import evaluated
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS, wants_damage
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import target_ms

_COEFFICIENTS = "spdy:coefficients"


class Spdy(CandidateSampler):
    """Weighs every damage curve with a coefficient and solves for the budget [Frantar2022spdy].

    Damage of one group or block says how it grows, not how much it matters beside others; that is
    what the coefficients in [0, 1] are for. After some random vectors the best one is resampled in
    a few random places, and in fewer the longer nothing was better.

    What we changed: the inner problem is solved on the exact latency
    (:class:`~autoprune.strategy.allocation.Allocator`) and not by dynamic programming on sums of
    layer timings; the first vector has equal coefficients; blocks have one each, as groups do; and
    without a budget every trial aims at another latency and resamples the best, for its own
    latency, of the nearest ones. Where a problem comes without damage, it is the square of the
    ratio.

    Coefficients are kept as a note in the study.

    References:
        [Frantar2022spdy] Frantar, Alistarh. SPDY: Accurate Pruning with Speedup Guarantees.
        ICML 2022.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        startup_trials: int = 20,
        resampled: float = 0.1,
        patience: int = 100,
        neighbours: int = 8,
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            startup_trials: Vectors before the best is resampled.
            resampled: Share of the coefficients that are drawn anew.
            patience: Trials without a better one after which one coefficient less is drawn anew.
            neighbours: Evaluated candidates among which the best is chosen without a budget.

        Raises:
            SettingsError: A number is out of its range.
        """
        super().__init__(problem, seed=seed)
        if min(startup_trials, patience, neighbours) < 1 or not 0.0 < resampled <= 1.0:
            raise SettingsError(
                "sampler 'spdy': expected startup_trials, patience and neighbours >= 1 and "
                f"0 < resampled <= 1, got {startup_trials}, {patience}, {neighbours} and "
                f"{resampled}"
            )
        self.startup_trials = startup_trials
        self.resampled = resampled
        self.patience = patience
        self.neighbours = neighbours

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the candidate of new coefficients."""
        limit = target_ms(self.problem, trial.number)
        coefficients = self._coefficients(study, trial, limit, rng)
        remember(study, trial, _COEFFICIENTS, coefficients.tolist())
        return self.solved(coefficients, limit)

    def solved(self, coefficients: Float[np.ndarray, " places"], limit_ms: float) -> Candidate:
        """Return the candidate of least weighed damage within a latency.

        Args:
            coefficients: One per group, then one per block, at least 0.
            limit_ms: Latency in ms.
        """
        groups = len(self.problem.space.dimensions)
        base = self._base
        costs = Costs(
            base.groups * coefficients[:groups, None],
            base.blocks * coefficients[groups:],
            base.edges,
            base.pairs,
        )
        limits = np.array([limit_ms])
        points, _ = self._allocator.solve_many(costs, limits)
        return self._allocator.candidates(points, limits)[0]

    def _coefficients(
        self, study: Study, trial: FrozenTrial, limit_ms: float, rng: np.random.Generator
    ) -> Float[np.ndarray, " places"]:
        space = self.problem.space
        places = len(space.dimensions) + len(space.blocks)
        earlier = remembered(study, trial, _COEFFICIENTS)
        if not earlier:
            return np.full(places, 0.5)
        known = {other.number for other in earlier}
        population = evaluated(self.problem, study)
        mine = [
            t
            for t in population.ranked(limit_ms, self.neighbours)
            if population.trials[t].number in known
        ]
        if len(earlier) < self.startup_trials or not mine:
            return rng.random(places)
        best = population.trials[mine[0]]
        since = sum(other.number > best.number for other in earlier)
        count = max(round(self.resampled * places) - since // self.patience, 1)
        coefficients = np.array(best.system_attrs[_COEFFICIENTS], float)
        chosen = rng.choice(places, size=min(count, places), replace=False)
        coefficients[chosen] = rng.random(len(chosen))
        return coefficients

    @cached_property
    def _allocator(self) -> Allocator:
        return Allocator(self.problem)

    @cached_property
    def _base(self) -> Costs:
        damage = self.problem.damage or Damage.quadratic(self.problem.space)
        return Costs.of_damage(self._allocator.grid, damage)


@SAMPLERS.register("spdy")
@wants_damage("obs")
def spdy(
    problem: Problem,
    *,
    seed: int,
    startup_trials: int = 20,
    resampled: float = 0.1,
    patience: int = 100,
    neighbours: int = 8,
) -> BaseSampler:
    """Return :class:`Spdy`.

    Args:
        problem: What is searched; its damage is read.
        seed: At least 0.
        startup_trials: Vectors before the best is resampled; the paper's are 100.
        resampled: Share of the coefficients that are drawn anew.
        patience: Trials without a better one after which one coefficient less is drawn anew.
        neighbours: Evaluated candidates among which the best is chosen without a budget.

    Raises:
        SettingsError: A number is out of its range.
    """
    return Spdy(
        problem,
        seed=seed,
        startup_trials=startup_trials,
        resampled=resampled,
        patience=patience,
        neighbours=neighbours,
    )
