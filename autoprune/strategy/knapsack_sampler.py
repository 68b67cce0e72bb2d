"""The default strategy: damage curves, corrected by what was evaluated, in an exact knapsack."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autoprune.strategy.acquisition import Front, expected_improvement, hypervolume_improvement
from autoprune.strategy.allocation import Allocator, Points
from autoprune.strategy.budget import project, widen
from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.problem import Problem
from autoprune.strategy.rays import random_candidate
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.surrogate import Basis, Prior, Surrogate, fit

#: Added to losses that would be close to 0 else, such as divergences, in nats.
_OFFSET = 0.05

#: Log-losses are cut off here; beyond, a network is destroyed however much.
_WORST = 5.0

#: Variance that predictions have at least.
_LEAST_VARIANCE = 1e-6

#: One in so many proposals is a sensitivity point while the model is not trusted, and of how many
#: groups.
_SENSITIVITY = 5

#: Rows of latency that one round of moves of the pool's level switches may ask for.
_ROWS = 12_000

#: Random proposals begin with this trial: before, each other one adds much to the front.
_FIRST_EXPLORED = 20

#: So many of the best candidates within a budget are changed to find a better one.
_BEST = 4

#: Budgets from this fraction of the fastest useful network's latency on are worth solving for.
_BELOW_FRONT = 0.85


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnapsackSettings:
    """How much the strategy tries per proposal.

    Attributes:
        anchors: Latencies at which the damage curves alone decide, before anything is learned; half
            as many where there is a budget.
        draws: Solutions for coefficients drawn from the posterior.
        switches: Changes of candidates of the front.
        gaps: Widest gaps of the front that are solved for.
        temper: Factor of the deviations of drawn coefficients.
        exploration: Fraction of proposals that no damage makes, from the 20th trial on.
        at_budget: Fraction of solutions at the budget where there is one, and of changes that are
            made to the best candidates within it.
        screened_weight: Weight of evaluations on few images.
    """

    anchors: int = 8
    draws: int = 10
    switches: int = 30
    gaps: int = 3
    temper: float = 0.7
    exploration: float = 0.1
    at_budget: float = 0.7
    screened_weight: float = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class _History:
    """What the study knows, as arrays.

    Attributes:
        widths: Of all candidates that were ever asked for.
        keep: Of the same.
        ms: Their latency.
        y: Logarithm of the loss over the unpruned network's; NaN where there is none (yet).
        weight: Weight of each evaluation.
        pending: Which are being evaluated.
        precise: Which were evaluated in full.
        guess: Value of ``y`` of guessing; ``None`` where it is not known.
    """

    widths: Int[np.ndarray, "n groups"]
    keep: Bool[np.ndarray, "n blocks"]
    ms: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    pending: Bool[np.ndarray, " n"]
    precise: Bool[np.ndarray, " n"]
    guess: float | None

    @property
    def done(self) -> Bool[np.ndarray, " n"]:
        """Which have a loss."""
        known: Bool[np.ndarray, " n"] = ~np.isnan(self.y)
        return known


class KnapsackSampler(CandidateSampler):
    """Learns how damage becomes loss and proposes what should add most to the front.

    Anchors come first: the cheapest candidates by the damage curves within several budgets, from
    the mildest on, as long as they are not destroyed. From then on each
    proposal is the best of a pool by expected hypervolume improvement, or with a budget by expected
    improvement within it. The pool holds solutions of the knapsack problem for coefficients drawn
    from the posterior, changes of candidates of the front, or with a budget mostly of the best
    within it, as EvoPress makes them [Sieberling2024evopress], and solutions for the front's gaps.
    A few later proposals are what no damage says, the first with one ratio for all groups, others
    random.
    Candidates that are being evaluated count as evaluated with what is predicted.

    Everything follows from the study's trials and the trial's number; what is kept between
    proposals depends on the problem alone.

    References:
        [Sieberling2024evopress] Sieberling, Kuznedelev, Kurtic, Alistarh. EvoPress: Towards Optimal
        Dynamic Model Compression via Evolutionary Search. arXiv 2410.14649, 2024.
    """

    def __init__(
        self, problem: Problem, *, seed: int, settings: KnapsackSettings, prior: Prior
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched; without damage curves the squares of the ratios stand in.
            seed: At least 0.
            settings: How much is tried.
            prior: How far the damage is trusted.
        """
        super().__init__(problem, seed=seed)
        self.settings = settings
        self.prior = prior

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return an anchor while there are any, then what the acquisition prefers."""
        history = self._history(study, trial)
        self.doing = "an anchor: least damage at one latency, by the damage curves alone"
        candidate = self._anchor(history)
        if candidate is None and self._explores(trial.number):
            self.doing = "exploring: a candidate that no damage proposes"
            candidate = self._explored(history, rng)
        if candidate is None:
            surrogate = self._fitted(history)
            self.doing = "learning: a group whose damage is least understood, made narrower"
            candidate = self._sensitivity(history, surrogate, trial.number)
        if candidate is None:
            self.doing = "improving: the knapsack that promises most after what was evaluated"
            candidate = self._best(history, surrogate, rng)
        # Where nothing new was found, the space is nearly exhausted.
        return candidate or random_candidate(self.problem, rng)

    # --- what the problem alone decides -------------------------------------------------------

    @cached_property
    def allocator(self) -> Allocator:
        """The solver, with its level grid."""
        return Allocator(self.problem)

    @cached_property
    def basis(self) -> Basis:
        """The surrogate's features."""
        return Basis(self.problem, self.problem.damage or Damage.quadratic(self.problem.space))

    @cached_property
    def top_ms(self) -> float:
        """The highest budget of interest."""
        budget = self.problem.budget_ms
        return self.problem.dense_ms if budget is None else min(budget, self.problem.dense_ms)

    @cached_property
    def scale(self) -> float:
        """Log-loss per damage before any evaluation: half the latency is thought to cost 1."""
        middle = project(
            self.problem, self.problem.space.dense(), budget_ms=self._between(0.5), fill=False
        )
        space = self.problem.space
        total = float(self.basis.damage.at(space, space.widths([middle]), space.keep([middle]))[0])
        return 1.0 / total if total > 0 else 1.0

    @cached_property
    def anchors(self) -> tuple[Candidate, ...]:
        """The first candidates, the slowest first."""
        low, top = self._between(0.0), self._between(1.0)
        count = self.settings.anchors
        if self.problem.budget_ms is not None:
            # What is far below the budget says little about what is best at it.
            count, low = max(count // 2, 1), math.sqrt(low * top)
        # In proportion they crowd where nothing is left to lose, evenly they leave that out.
        spaced = (np.geomspace(low, top, count + 1) + np.linspace(low, top, count + 1)) / 2.0
        budgets = np.maximum(spaced[::-1], self._between(0.0))
        # The unpruned network needs no anchor.
        budgets = budgets[:-1] if self.problem.budget_ms is not None else budgets[1:]
        costs = Costs.of_damage(self.allocator.grid, self.basis.damage)
        found = [self.allocator.solve(costs, float(budget)) for budget in budgets]
        return tuple(dict.fromkeys(project(self.problem, candidate) for candidate in found))

    def _between(self, share: float) -> float:
        low = self.problem.fastest[1]
        return max(low + share * (self.top_ms - low), low)

    @cached_property
    def _ladder(self) -> Points:
        """Quick solutions for the damage alone at several budgets, to start descents from."""
        return self._laddered[0]

    @cached_property
    def _laddered(self) -> tuple[Points, Float[np.ndarray, " n"]]:
        costs = Costs.of_damage(self.allocator.grid, self.basis.damage)
        budgets = np.linspace(self._between(0.0), self._between(1.0), 2 * self.settings.anchors)
        levels = np.zeros((len(budgets), len(self.problem.space.dimensions)), np.int64)
        keep = np.ones((len(budgets), len(self.problem.space.blocks)), bool)
        start = self.allocator.at(costs, levels, keep, np.zeros(len(budgets), np.int64))
        return self.allocator.solve_many(costs, budgets, start=start)

    # --- what the study says ------------------------------------------------------------------

    def _history(self, study: Study, trial: FrozenTrial) -> _History:
        space = self.problem.space
        names = space.distributions().keys()
        trials = [
            other
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and names <= other.params.keys()
        ]
        candidates = [
            space.candidate({name: other.params[name] for name in names}) for other in trials
        ]
        widths, keep = space.widths(candidates), space.keep(candidates)
        screened = np.array([bool(other.user_attrs.get("screened")) for other in trials], bool)
        states = [other.state for other in trials]
        y, guess = _log_losses(trials, self.problem.guess_loss)
        return _History(
            widths,
            keep,
            self.problem.predict(widths, keep),
            y,
            np.where(screened, self.settings.screened_weight, 1.0),
            np.array([not state.is_finished() for state in states], bool),
            ~screened,
            guess,
        )

    def _prior(self, history: _History) -> Prior:
        if history.guess is None:
            return self.prior
        return dataclasses.replace(self.prior, cut=history.guess, ceiling=history.guess)

    def _fitted(self, history: _History) -> Surrogate:
        done = history.done
        surrogate = fit(
            self.basis,
            self.basis.features(history.widths[done], history.keep[done]),
            history.y[done],
            history.weight[done],
            history.ms[done],
            scale=self.scale,
            prior=self._prior(history),
        )
        pending = history.pending
        return surrogate.believing(
            self.basis.features(history.widths[pending], history.keep[pending])
        )

    def _front(self, history: _History, surrogate: Surrogate) -> Front:
        """Return the front, on which pending candidates are as predicted."""
        predicted, _ = surrogate.predict(self.basis.features(history.widths, history.keep))
        y = np.where(history.pending, predicted, history.y)
        counts = history.pending | (history.done & history.precise)
        return Front.of(
            y[counts],
            history.ms[counts],
            fastest_ms=self.problem.fastest[1],
            dense_ms=max(self.problem.dense_ms, self.problem.fastest[1]),
            reference=self._prior(history).cut,
        )

    # --- simple proposals ---------------------------------------------------------------------

    def _anchor(self, history: _History) -> Candidate | None:
        """Return the next anchor that is neither known nor faster than a destroyed one."""
        # An anchor is tried once, whatever becomes of it; so they end.
        if len(history.ms) > 2 * len(self.anchors):
            return None
        space = self.problem.space
        widths, keep = space.widths(self.anchors), space.keep(self.anchors)
        ms = self.problem.predict(widths, keep)
        known = {key: row for row, key in enumerate(_keys(history.widths, history.keep))}
        destroyed = 0.0
        for key, latency, candidate in zip(_keys(widths, keep), ms, self.anchors, strict=True):
            row = known.get(key)
            if row is None:
                if latency >= destroyed:
                    return candidate
            elif history.y[row] > self._prior(history).cut:
                destroyed = max(destroyed, latency)
        return None

    def _explores(self, number: int) -> bool:
        if self.settings.exploration <= 0:
            return False
        every = max(round(1.0 / self.settings.exploration), 1)
        return number >= _FIRST_EXPLORED and number % every == every - 1

    def _explored(self, history: _History, rng: np.random.Generator) -> Candidate:
        """Return the uniform candidate in the middle or at the budget, a random one after it."""
        space, problem = self.problem.space, self.problem
        middle = self._between(0.5 if problem.budget_ms is None else 1.0)
        uniform = project(problem, space.dense(), budget_ms=middle)
        (key,) = _keys(space.widths([uniform]), space.keep([uniform]))
        known = key in set(_keys(history.widths, history.keep))
        return random_candidate(problem, rng) if known else uniform

    def _sensitivity(
        self, history: _History, surrogate: Surrogate, number: int
    ) -> Candidate | None:
        """Return a change of one group that is least understood, if the model ranks badly.

        Of the groups whose share of the latency times posterior variance is largest, one is made
        two levels narrower in the middle candidate of the front.
        """
        judged = surrogate.judgement
        elite = self._elite(history)
        if judged is None or judged >= self.prior.least_rank or not len(elite):
            return None
        if number % _SENSITIVITY:
            return None
        grid, space = self.allocator.grid, self.problem.space
        alone = np.repeat(space.sizes[None], len(space.sizes), axis=0)
        np.fill_diagonal(alone, space.smallest_widths)
        whole = np.ones((len(alone), len(space.blocks)), bool)
        share = self.problem.dense_ms - self.problem.predict(alone, whole)
        _, variance = surrogate.predict(self.basis.features(alone, whole))
        ranked = np.argsort(-share * variance, kind="stable")[:_SENSITIVITY]
        group = ranked[number // _SENSITIVITY % len(ranked)]
        row = elite[len(elite) // 2]
        widths = history.widths[row : row + 1].copy()
        level = grid.nearest(widths)[0, group]
        widths[0, group] = grid.widths[group, min(level + 2, grid.counts[group] - 1)]
        return space.candidates(widths, history.keep[row : row + 1])[0]

    def _elite(self, history: _History) -> Int[np.ndarray, " n"]:
        """Return the evaluated candidates that no other beats, the fastest first."""
        rows = np.flatnonzero(history.done & history.precise)
        rows = rows[np.lexsort((history.y[rows], history.ms[rows]))]
        best = np.minimum.accumulate(np.append(self._prior(history).cut, history.y[rows]))[:-1]
        elite: Int[np.ndarray, " n"] = rows[history.y[rows] < best]
        return elite

    def _best_within(self, history: _History) -> Int[np.ndarray, " n"]:
        """Return the best evaluated candidates within the budget, the best first."""
        if self.problem.budget_ms is None:
            return np.zeros(0, np.int64)
        useful = history.done & history.precise & (history.ms <= self.problem.budget_ms)
        rows = np.flatnonzero(useful)
        best: Int[np.ndarray, " n"] = rows[np.argsort(history.y[rows], kind="stable")[:_BEST]]
        return best

    # --- the pool -----------------------------------------------------------------------------

    def _best(
        self, history: _History, surrogate: Surrogate, rng: np.random.Generator
    ) -> Candidate | None:
        """Return the candidate of the pool that is expected to improve most."""
        front = self._front(history, surrogate)
        widths, keep = self._pool(history, surrogate, front, rng)
        seen = set(_keys(history.widths, history.keep))
        new = np.array([key not in seen for key in _keys(widths, keep)], bool)
        widths, keep = widths[new], keep[new]
        if not len(widths):
            return None
        ms = self.problem.predict(widths, keep)
        mean, variance = surrogate.predict(self.basis.features(widths, keep))
        std = np.sqrt(variance + _LEAST_VARIANCE)
        if self.problem.budget_ms is None:
            gain = hypervolume_improvement(front, mean, std, ms)
        else:
            gain = expected_improvement(front.within(self.problem.budget_ms), mean, std)
        # Where nothing promises anything, the least loss for its latency is as good a choice.
        best = int(np.lexsort((mean, -gain))[0])
        widths, keep = widths[best : best + 1], keep[best : best + 1]
        if self.problem.budget_ms is not None:
            # The widths between the levels use up what they leave of the budget.
            widths = widen(self.problem, widths, keep, self.problem.budget_ms)
        return self.problem.space.candidates(widths, keep)[0]

    def _pool(
        self, history: _History, surrogate: Surrogate, front: Front, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]]:
        budgets = self._budgets(front, rng)
        draws = surrogate.draws(rng, self.settings.draws, temper=self.settings.temper)
        means = np.repeat(surrogate.theta[None], len(budgets) - len(draws), axis=0)
        theta = np.vstack([draws, means])
        rungs, prices = self._laddered
        nearest = np.argmin(np.abs(rungs.ms - budgets[:, None]), axis=1)
        costs = self.basis.costs(self.allocator.grid, theta)
        functions = np.arange(len(theta))
        start = self.allocator.at(costs, rungs.levels[nearest], rungs.keep[nearest], functions)
        price = prices[nearest] * np.maximum(theta[:, 0], 0.1 * self.scale)
        solved, _ = self.allocator.solve_many(costs, budgets, start=start, price=price)
        switched = self._switched(costs, budgets, history, rng)
        parts = [self.allocator.widths(part.levels, part.keep) for part in (solved, switched)]
        widths = np.concatenate([part[0] for part in parts])
        keep = np.concatenate([part[1] for part in parts])
        return self.problem.space.realise(1.0 - widths / self.problem.space.sizes, ~keep)

    def _budgets(self, front: Front, rng: np.random.Generator) -> Float[np.ndarray, " functions"]:
        """Return one budget for each drawn cost function, then those for the mean."""
        draws = self.settings.draws
        low = max(_BELOW_FRONT * float(front.edges_ms[1]), self._between(0.0))
        budgets = rng.uniform(min(low, self.top_ms), self.top_ms, draws)
        if self.problem.budget_ms is None:
            return np.append(budgets, _middles(front.edges_ms, self.settings.gaps))
        budgets[rng.uniform(size=draws) < self.settings.at_budget] = self.top_ms
        return np.append(budgets, self.top_ms)

    def _switched(
        self,
        costs: Costs,
        budgets: Float[np.ndarray, " functions"],
        history: _History,
        rng: np.random.Generator,
    ) -> Points:
        """Return candidates of the front with a few levels exchanged, as fast as they were."""
        elite = self._elite(history)
        grid, space = self.allocator.grid, self.problem.space
        count = min(self.settings.switches, max(_ROWS // max(int(grid.counts.sum()), 1), 4))
        row = elite[rng.integers(len(elite), size=count)] if len(elite) else elite
        best = self._best_within(history)
        if len(best):
            near = rng.uniform(size=len(row)) < self.settings.at_budget
            row = np.where(near, best[rng.integers(len(best), size=len(row))], row)
        levels, keep = grid.nearest(history.widths[row]), history.keep[row].copy()
        places = np.append(
            np.flatnonzero(grid.counts > 1),
            len(grid.counts) + np.flatnonzero(space.droppable),
        )
        for index in range(len(row) if len(places) else 0):
            flips = int(min(rng.integers(1, 4), rng.integers(1, 4)))
            chosen = rng.choice(places, size=min(2 * flips, len(places)), replace=False)
            for step, place in zip((-1, 1) * flips, chosen.tolist(), strict=False):
                if place < len(grid.counts):
                    level = levels[index, place] + step
                    levels[index, place] = np.clip(level, 0, grid.counts[place] - 1)
                else:
                    keep[index, place - len(grid.counts)] ^= True
        _, keep = space.realise(np.zeros(levels.shape), ~keep)
        # Of the mean's cost functions, the one that was made for the nearest latency.
        means = budgets[self.settings.draws :]
        nearest = np.argmin(np.abs(means - history.ms[row][:, None]), axis=1)
        points = self.allocator.at(costs, levels, keep, self.settings.draws + nearest)
        return self.allocator.repair(costs, points, history.ms[row])


def _keys(widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]) -> list[bytes]:
    """Return what tells candidates apart."""
    return [w.tobytes() + k.tobytes() for w, k in zip(widths, keep, strict=True)]


def _middles(edges: Float[np.ndarray, " edges"], count: int) -> Float[np.ndarray, " n"]:
    """Return the middles of the widest intervals.

    >>> _middles(np.array([0.0, 1.0, 5.0, 7.0]), 2).tolist()
    [3.0, 6.0]
    """
    widest = np.argsort(-np.diff(edges), kind="stable")[:count]
    middles: Float[np.ndarray, " n"] = (edges[widest] + edges[widest + 1]) / 2.0
    return middles


def _log_losses(
    trials: list[FrozenTrial], guess_loss: float | None
) -> tuple[Float[np.ndarray, " n"], float | None]:
    """Return the logarithm of each loss over the unpruned network's, and that of guessing.

    Losses that are not known are NaN, the one of guessing is ``None``. Where no trial is marked as
    the unpruned network, the least loss stands in.
    """
    loss = np.array(
        [
            float(trial.values[0]) if trial.state == TrialState.COMPLETE else math.nan
            for trial in trials
        ],
        float,
    )
    loss[~np.isfinite(loss)] = math.nan
    known = loss[~np.isnan(loss)]
    if not len(known):
        return loss, None
    dense = [
        value
        for value, trial in zip(loss.tolist(), trials, strict=True)
        if trial.user_attrs.get("dense") and not math.isnan(value)
    ]
    reference = dense[0] if dense else float(known.min())
    offset = max(_OFFSET - min(float(known.min()), reference), 0.0)
    ratio = np.log((loss + offset) / (reference + offset))
    guess = None
    if guess_loss is not None and guess_loss > reference:
        guess = math.log((guess_loss + offset) / (reference + offset))
    return np.minimum(ratio, _WORST), guess
