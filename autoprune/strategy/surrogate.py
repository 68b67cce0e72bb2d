"""Predicts the loss of candidates: damage curves, corrected by Bayesian linear regression.

Damage adds up, but a network that is half destroyed has less left to lose: the log-loss is the sum,
saturating at that of guessing. So little has to be learned: one scale for all curves, a factor and
a change of shape for each, and how neighbours add up. Priors hold all corrections near zero until
evaluations speak. What the sum cannot tell is no noise: candidates that are nearly the same share
it, so the neighbours of a network that is better than foretold are foretold better too.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from autoprune.strategy.costs import Costs
from autoprune.strategy.damage import Damage
from autoprune.strategy.levels import LevelGrid
from autoprune.strategy.problem import Problem

#: A damage below this, in log-loss, is as uncertain as this.
_FLOOR = 0.02

#: Every level down costs at least this, so that equal costs do not remove units for nothing.
_STEP = 1e-6

#: Log-losses beyond this fraction of the one of guessing are taken for this.
_NEARLY_GUESSING = 0.98

#: How many times as inexact as thought beforehand the features may turn out to be.
_MISFITS = (1.0, 2.0, 4.0)

#: Noise of an evaluation as a fraction of the least misfit.
_NOISE = 0.5

#: Candidates this many whole groups or blocks apart share 1 / e of what the features cannot tell.
_REACH = 1.0

#: Fewest evaluations by which the model is judged, and in how many bins of latency.
_JUDGED = 24
_BINS = 3


class Basis:
    """What candidates look like to the model.

    The columns are the sum of damage; for each group its damage as a fraction of the largest, and
    the root of that; for each pair of neighbouring groups the root of the product of the fractions;
    for each block whether it is dropped; and the damage of all that are.
    """

    def __init__(self, problem: Problem, damage: Damage) -> None:
        """Tabulate the damage by kept units.

        Args:
            problem: Supplies the space and the pairs.
            damage: The curves; a group whose units all cost nothing is given the ratio.
        """
        space = problem.space
        self.space = space
        self.damage = damage
        #: Damage of every group at its narrowest.
        self.most = np.array(
            [curve[w] for curve, w in zip(damage.groups, space.smallest_widths, strict=True)], float
        )
        searched = space.smallest_widths < space.sizes
        self.edges = np.array(
            [pair for pair in problem.pairs if searched[list(pair)].all()], np.int64
        ).reshape(-1, 2)
        self._fractions = [
            _fraction(curve, dim.smallest)
            for curve, dim in zip(damage.groups, space.dimensions, strict=True)
        ]

    def features(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, "n features"]:
        """Return one row per candidate."""
        part = self.fractions(widths) * self.space.active(keep)
        root = np.sqrt(part)
        a, b = self.edges.T
        total = self.damage.at(self.space, widths, keep)
        depth = (~keep) @ self.damage.blocks
        parts = [total[:, None], part, root, root[:, a] * root[:, b], ~keep, depth[:, None]]
        return np.hstack(parts)

    def places(
        self, features: Float[np.ndarray, "n features"]
    ) -> Float[np.ndarray, "n dimensions"]:
        """Return where candidates lie: each group from whole 0 to narrowest 1, each block."""
        groups, pairs, blocks = len(self.most), len(self.edges), len(self.damage.blocks)
        first = 1 + 2 * groups + pairs
        places: Float[np.ndarray, "n dimensions"] = np.hstack(
            [features[:, 1 + groups : 1 + 2 * groups], features[:, first : first + blocks]]
        )
        return places

    def fractions(self, widths: Int[np.ndarray, "n groups"]) -> Float[np.ndarray, "n groups"]:
        """Return the damage of each group as a fraction of that at its narrowest."""
        columns = [fraction[widths[:, g]] for g, fraction in enumerate(self._fractions)]
        table: Float[np.ndarray, "n groups"] = (
            np.array(columns, float).reshape(widths.shape[::-1]).T
        )
        return table

    def spread(
        self, scale: float, *, linear: float, root: float, pair: float, depth: float
    ) -> Float[np.ndarray, " features"]:
        """Return the prior standard deviation of every coefficient.

        Args:
            scale: Log-loss per damage.
            linear: Of a group's factor, relative to its largest log-loss.
            root: Of its change of shape.
            pair: Of a pair, relative to the geometric mean of both.
            depth: Of the factor that all blocks share.
        """
        group = scale * self.most + _FLOOR
        a, b = self.edges.T
        block = scale * self.damage.blocks + _FLOOR
        return np.concatenate(
            [
                [scale],
                linear * group,
                root * group,
                pair * np.sqrt(group[a] * group[b]),
                # For what is dropped or not, factor and change of shape are the same.
                np.hypot(linear, root) * block,
                [depth * scale],
            ]
        )

    def costs(
        self,
        grid: LevelGrid,
        theta: Float[np.ndarray, "draws features"],
    ) -> Costs:
        """Return the costs that coefficients stand for, each group's never falling with the level.

        Args:
            grid: The levels.
            theta: One row of coefficients per cost function.
        """
        groups, pairs = len(self.most), len(self.edges)
        blocks = len(self.damage.blocks)
        scale, linear, root, pair, block, depth = np.split(
            theta, np.cumsum([1, groups, groups, pairs, blocks]), axis=1
        )
        part = self.fractions(grid.widths.T).T
        curve = np.array(
            [table[w] for table, w in zip(self.damage.groups, grid.widths, strict=True)], float
        ).reshape(part.shape)
        half = np.sqrt(part)
        unary = scale[:, :, None] * curve + linear[:, :, None] * part + root[:, :, None] * half
        unary = np.maximum.accumulate(np.maximum(unary, 0.0), axis=2)
        unary += _STEP * np.arange(grid.widths.shape[1])
        a, b = self.edges.T
        return Costs(
            unary,
            np.maximum((scale + depth) * self.damage.blocks + block, 0.0) + _STEP,
            self.edges,
            pair[:, :, None, None] * half[a, :, None] * half[b, None, :],
        )


@dataclasses.dataclass(frozen=True)
class Saturation:
    """How what damage adds up to becomes log-loss: ``ceiling * (1 - exp(-total / ceiling))``.

    Attributes:
        ceiling: Log-loss of guessing, above 0; infinite where it is not known, and then nothing
            saturates.
    """

    ceiling: float

    def __call__(self, total: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return log-losses."""
        if math.isinf(self.ceiling):
            return total
        logs: Float[np.ndarray, " n"] = -self.ceiling * np.expm1(-total / self.ceiling)
        return logs

    def inverse(self, logs: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return what adds up to log-losses; what is nearly guessing is taken for a bit better."""
        if math.isinf(self.ceiling):
            return logs
        share = np.minimum(logs / self.ceiling, _NEARLY_GUESSING)
        total: Float[np.ndarray, " n"] = -self.ceiling * np.log1p(-share)
        return total

    def slope(self, total: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the derivative, 1 for an unpruned network."""
        slope: Float[np.ndarray, " n"] = np.exp(-total / self.ceiling)
        return slope


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluations:
    """What was evaluated, before the log-loss saturates.

    Attributes:
        features: One row each.
        total: What adds up to the log-loss that came out.
        weight: Weight of each, at most about 1.
    """

    features: Float[np.ndarray, "n features"]
    total: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
    """A Gaussian posterior: coefficients in units of their prior standard deviations, and misfit.

    The misfit is a Gaussian process over :meth:`Basis.places` whose covariance falls exponentially
    with the distance [Rasmussen2006gp, section 2.7 for coefficients beside a process].

    Attributes:
        basis: What the coefficients belong to.
        saturation: From what the features add up to, to log-loss.
        spread: Prior standard deviations.
        misfit: Standard deviation of what the features cannot tell, in log-loss.
        noise: Standard deviation of an evaluation around both.
        seen: What was evaluated.
        judgement: Rank correlation of left-out predictions with evaluations of similar latency;
            ``None`` for too few of them.

    References:
        [Rasmussen2006gp] Rasmussen, Williams. Gaussian Processes for Machine Learning. MIT Press,
        2006.
    """

    basis: Basis
    saturation: Saturation
    spread: Float[np.ndarray, " features"]
    misfit: float
    noise: float
    seen: Evaluations
    judgement: float | None = None

    @cached_property
    def _whitening(self) -> Float[np.ndarray, "n n"]:
        """Triangular root of the covariance of misfit and noise."""
        places = self.basis.places(self.seen.features)
        covariance = self._shared(places, places) + self.noise**2 * np.eye(len(places))
        root: Float[np.ndarray, "n n"] = np.linalg.cholesky(covariance)
        return root

    @cached_property
    def _white(self) -> tuple[Float[np.ndarray, "n features"], Float[np.ndarray, " n"]]:
        """Features and totals of what was evaluated, as if misfit and noise were independent."""
        heavy = np.sqrt(self.seen.weight)
        scaled = heavy[:, None] * self.seen.features * self.spread
        return (
            np.linalg.solve(self._whitening, scaled),
            np.linalg.solve(self._whitening, heavy * self.seen.total),
        )

    @cached_property
    def root(self) -> Float[np.ndarray, "features features"]:
        """Triangular root of the posterior precision of the coefficients."""
        white, _ = self._white
        root: Float[np.ndarray, "features features"] = np.linalg.cholesky(
            np.eye(len(self.spread)) + white.T @ white
        )
        return root

    @cached_property
    def mean(self) -> Float[np.ndarray, " features"]:
        """Posterior mean of the coefficients; that of the first is 1 before any evaluation."""
        white, total = self._white
        right = white.T @ total
        right[0] += 1.0
        mean: Float[np.ndarray, " features"] = np.linalg.solve(
            self.root.T, np.linalg.solve(self.root, right)
        )
        return mean

    def predict(
        self, features: Float[np.ndarray, "n features"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return mean and variance of the log-loss, without the noise of an evaluation."""
        total, variance = self.totals(features)
        return self.saturation(total), self.saturation.slope(total) ** 2 * variance

    def totals(
        self, features: Float[np.ndarray, "n features"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return mean and variance of the log-loss before it saturates."""
        white, total = self._white
        shared = self._shared(self.basis.places(self.seen.features), self.basis.places(features))
        known = np.linalg.solve(self._whitening, shared)
        scaled = features * self.spread
        half = np.linalg.solve(self.root, scaled.T - white.T @ known)
        mean = scaled @ self.mean + (total - white @ self.mean) @ known
        # Two terms of the size of the misfit; their difference must not fall below nothing.
        left = np.maximum(self.misfit**2 - (known**2).sum(axis=0), 0.0)
        return mean, left + (half**2).sum(axis=0)

    def _shared(
        self, one: Float[np.ndarray, "m dimensions"], other: Float[np.ndarray, "n dimensions"]
    ) -> Float[np.ndarray, "m n"]:
        """Return the covariance of the misfit of candidates at these places."""
        shared: Float[np.ndarray, "m n"] = self.misfit**2 * np.exp(
            -cdist(one, other, "cityblock") / _REACH
        )
        return shared

    def draws(
        self, rng: np.random.Generator, count: int, *, temper: float
    ) -> Float[np.ndarray, "count features"]:
        """Return coefficients drawn from the posterior, their deviations scaled by ``temper``."""
        normal = rng.standard_normal((len(self.mean), count))
        deviation = np.linalg.solve(self.root.T, normal).T
        drawn: Float[np.ndarray, "count features"] = (self.mean + temper * deviation) * self.spread
        return drawn

    @property
    def theta(self) -> Float[np.ndarray, " features"]:
        """The mean of the coefficients themselves."""
        theta: Float[np.ndarray, " features"] = self.mean * self.spread
        return theta

    def believing(self, features: Float[np.ndarray, "n features"]) -> Surrogate:
        """Return the posterior if these candidates were evaluated as predicted."""
        total, _ = self.totals(features)
        seen = Evaluations(
            np.vstack([self.seen.features, features]),
            np.append(self.seen.total, total),
            np.append(self.seen.weight, self.saturation.slope(total) ** 2),
        )
        return dataclasses.replace(self, seen=seen)

    @property
    def evidence(self) -> float:
        """Logarithm of how probable the evaluations are, up to a constant."""
        root = np.linalg.cholesky(self._covariance)
        error = np.linalg.solve(root, self._surprise)
        return -0.5 * float(error @ error) - float(np.log(np.diag(root)).sum())

    def left_out(self) -> Float[np.ndarray, " n"]:
        """Return the prediction of each evaluation from all others, before it saturates."""
        inverse = np.linalg.inv(self._covariance)
        error = (inverse @ self._surprise) / np.diag(inverse)
        predicted: Float[np.ndarray, " n"] = self.seen.total - error / np.sqrt(self.seen.weight)
        return predicted

    @property
    def _covariance(self) -> Float[np.ndarray, "n n"]:
        """Covariance of the evaluations times the roots of their weights."""
        white, _ = self._white
        whole = np.eye(len(white)) + white @ white.T
        covariance: Float[np.ndarray, "n n"] = self._whitening @ whole @ self._whitening.T
        return covariance

    @property
    def _surprise(self) -> Float[np.ndarray, " n"]:
        """What came out less what the damage foretold, times the roots of the weights."""
        seen = self.seen
        gap: Float[np.ndarray, " n"] = np.sqrt(seen.weight) * (
            seen.total - seen.features[:, 0] * self.spread[0]
        )
        return gap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """How sure the surrogate is of the damage before any evaluation.

    Attributes:
        linear: Standard deviation of a group's factor, relative to its largest log-loss.
        root: Of its change of shape.
        pair: Of a pair of neighbours, relative to the geometric mean of both.
        depth: Of the factor that all blocks share.
        misfit: Standard deviation of what the features cannot tell, in log-loss; more where
            evaluations say so.
        cut: Log-loss over the unpruned network's above which a network is destroyed.
        ceiling: That of guessing, where it is known; no network is much worse.
        destroyed_weight: Weight of the evaluation of a destroyed network.
        least_rank: Where the rank correlation is below this, corrections may be twice as large.
    """

    linear: float = 0.3
    root: float = 0.2
    pair: float = 0.25
    depth: float = 0.25
    misfit: float = 0.04
    cut: float = 1.2
    ceiling: float = math.inf
    destroyed_weight: float = 0.2
    least_rank: float = 0.5


def fit(
    basis: Basis,
    features: Float[np.ndarray, "n features"],
    y: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    latency_ms: Float[np.ndarray, " n"],
    *,
    scale: float,
    prior: Prior,
) -> Surrogate:
    """Return the posterior given evaluations.

    Args:
        basis: Made the features.
        features: What was evaluated.
        y: Logarithm of its loss over the unpruned network's.
        weight: Weight of each evaluation, at most 1, besides that of destroyed networks.
        latency_ms: Its latency.
        scale: Log-loss per damage to start from, above 0.
        prior: The constants.
    """
    weight = weight * np.where(y > prior.cut, prior.destroyed_weight, 1.0)
    saturation = Saturation(prior.ceiling)
    total = saturation.inverse(y)
    # Where a loss hardly grows with the damage any more, it says as little of the damage.
    seen = Evaluations(features, total, weight * saturation.slope(total) ** 2)
    scale = _scale(seen, scale)

    def made(misfit: float, inflation: float) -> Surrogate:
        spread = _spread(basis, scale, prior, inflation)
        return Surrogate(basis, saturation, spread, misfit, _NOISE * prior.misfit, seen)

    found = max(
        (made(times * prior.misfit, 1.0) for times in _MISFITS), key=lambda each: each.evidence
    )
    if len(y) < _JUDGED:
        return found
    judgement = rank_within_bins(found.left_out(), total, latency_ms)
    if judgement < prior.least_rank:
        found = made(found.misfit, 2.0)
    return dataclasses.replace(found, judgement=judgement)


def rank_within_bins(
    predicted: Float[np.ndarray, " n"],
    actual: Float[np.ndarray, " n"],
    latency_ms: Float[np.ndarray, " n"],
) -> float:
    """Return the mean rank correlation among candidates of similar latency.

    Args:
        predicted: Predictions, at least a few per bin.
        actual: What they predict.
        latency_ms: Latency, of which equally large bins are made.
    """
    order = np.argsort(latency_ms, kind="stable")
    found = []
    for rows in np.array_split(order, _BINS):
        ranks = rankdata(predicted[rows]), rankdata(actual[rows])
        varies = all(np.ptp(rank) > 0 for rank in ranks)
        found.append(np.corrcoef(*ranks)[0, 1] if varies else 0.0)
    return float(np.mean(found))


def _spread(
    basis: Basis, scale: float, prior: Prior, inflation: float
) -> Float[np.ndarray, " features"]:
    return basis.spread(
        scale,
        linear=prior.linear * inflation,
        root=prior.root * inflation,
        pair=prior.pair * inflation,
        depth=prior.depth * inflation,
    )


def _scale(seen: Evaluations, start: float) -> float:
    """Return log-loss per damage by weighted least squares, within a factor of 100 of the start."""
    damage, weight = seen.features[:, 0], seen.weight
    below = (weight * damage**2).sum()
    slope = (weight * damage * seen.total).sum() / below if below > 0 else start
    return float(np.clip(slope, start / 100.0, start * 100.0))


def _fraction(curve: Float[np.ndarray, " _"], smallest: int) -> Float[np.ndarray, " _"]:
    """Return a curve over what it is at the narrowest width, between 0 and 1.

    >>> _fraction(np.array([9.0, 4.0, 1.0, 0.0]), 1).tolist()
    [1.0, 1.0, 0.25, 0.0]
    """
    if curve[smallest] <= 0:
        curve = np.arange(len(curve) - 1.0, -1.0, -1.0)
    fraction: Float[np.ndarray, " _"] = np.clip(curve / (curve[smallest] or 1.0), 0.0, 1.0)
    return fraction
