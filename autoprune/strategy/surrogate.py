"""Predicts the loss of candidates: damage curves, corrected by Bayesian linear regression.

Damage adds up, but a network that is half destroyed has less left to lose: the log-loss
is the sum, saturating at that of guessing. So little has to be learned: one scale for all curves, a
factor and a change of shape for each, and how neighbours add up. Priors hold all corrections near
zero until evaluations speak.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int
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
_NOISES = (1.0, 2.0, 4.0)

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
class Surrogate:
    """A Gaussian posterior of the coefficients, in units of their prior standard deviations.

    Attributes:
        basis: What the coefficients belong to.
        saturation: From what the features add up to, to log-loss.
        spread: Prior standard deviations.
        mean: Posterior mean.
        root: Triangular root of the posterior precision.
        noise: Standard deviation of an evaluation around what the features can tell, in log-loss.
        judgement: Rank correlation of left-out predictions with evaluations of similar latency;
            ``None`` for too few of them.
    """

    basis: Basis
    saturation: Saturation
    spread: Float[np.ndarray, " features"]
    mean: Float[np.ndarray, " features"]
    root: Float[np.ndarray, "features features"]
    noise: float
    judgement: float | None = None

    def predict(
        self, features: Float[np.ndarray, "n features"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return mean and variance of the log-loss, without the noise of an evaluation."""
        total, variance = self.totals(features)
        return self.saturation(total), self.saturation.slope(total) ** 2 * variance

    def totals(
        self, features: Float[np.ndarray, "n features"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return mean and variance of what the features add up to, before it saturates."""
        scaled = features * self.spread
        half = np.linalg.solve(self.root, scaled.T)
        return scaled @ self.mean, (half**2).sum(axis=0)

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
        slope = self.saturation.slope(self.totals(features)[0])
        scaled = features * self.spread * slope[:, None] / self.noise
        precision = self.root @ self.root.T + scaled.T @ scaled
        return dataclasses.replace(self, root=np.linalg.cholesky(precision))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """How sure the surrogate is of the damage before any evaluation.

    Attributes:
        linear: Standard deviation of a group's factor, relative to its largest log-loss.
        root: Of its change of shape.
        pair: Of a pair of neighbours, relative to the geometric mean of both.
        depth: Of the factor that all blocks share: their damage weighs from 0.3 to 7 times that of
            groups, 1.2 to 1.3 times where blocks that stay are reconstructed
            (`benchmarks/bm_curves.py`).
        noise: Standard deviation of an evaluation around what the features can tell, in log-loss;
            more where evaluations say so.
        cut: Log-loss over the unpruned network's above which a network is destroyed.
        ceiling: That of guessing, where it is known; no network is much worse.
        destroyed_weight: Weight of the evaluation of a destroyed network.
        least_rank: Where the rank correlation is below this, corrections may be twice as large.
    """

    linear: float = 0.5
    root: float = 0.35
    pair: float = 0.25
    depth: float = 1.0
    noise: float = 0.04
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
    weight = weight * saturation.slope(total) ** 2
    scale = _scale(features[:, 0], total, weight, scale)
    prior = _noticed(basis, features, total, weight, scale, prior)
    made = _posterior(basis, features, total, weight, scale, prior, 1.0)
    if len(y) < _JUDGED:
        return made
    left_out, _ = leave_one_out(made, features, total, weight)
    judgement = rank_within_bins(left_out, total, latency_ms)
    if judgement < prior.least_rank:
        made = _posterior(basis, features, total, weight, scale, prior, 2.0)
    return dataclasses.replace(made, judgement=judgement)


def leave_one_out(
    surrogate: Surrogate,
    features: Float[np.ndarray, "n features"],
    total: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the prediction of each evaluation from all others, and its standardised error.

    Args:
        surrogate: Fitted to all of them.
        features: What was evaluated.
        total: What adds up to the log-loss that came out.
        weight: Weight of each of these in the fit.
    """
    mean, variance = surrogate.totals(features)
    noise = surrogate.noise**2 / weight
    # With the evaluation itself, the variance is that without it times the noise's share.
    error = (total - mean) / (1.0 - variance / noise)
    return total - error, error / np.sqrt(noise / (1.0 - variance / noise))


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


def _noticed(
    basis: Basis,
    features: Float[np.ndarray, "n features"],
    total: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    scale: float,
    prior: Prior,
) -> Prior:
    """Return the prior with the noise under which the evaluations are most probable."""
    scaled = features * _spread(basis, scale, prior, 1.0)
    told = scaled @ scaled.T
    found = []
    for factor in _NOISES:
        noise = factor * prior.noise
        root = np.linalg.cholesky(told + np.diag(noise**2 / weight))
        error = np.linalg.solve(root, total - scaled[:, 0])
        found.append((-0.5 * float(error @ error) - float(np.log(np.diag(root)).sum()), noise))
    return dataclasses.replace(prior, noise=max(found)[1])


def _posterior(
    basis: Basis,
    features: Float[np.ndarray, "n features"],
    total: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    scale: float,
    prior: Prior,
    inflation: float,
) -> Surrogate:
    spread = _spread(basis, scale, prior, inflation)
    expected = np.zeros(len(spread))
    expected[0] = 1.0
    scaled = features * spread * np.sqrt(weight)[:, None] / prior.noise
    target = total * np.sqrt(weight) / prior.noise
    precision = np.eye(len(spread)) + scaled.T @ scaled
    root = np.linalg.cholesky(precision)
    mean = np.linalg.solve(root.T, np.linalg.solve(root, expected + scaled.T @ target))
    return Surrogate(basis, Saturation(prior.ceiling), spread, mean, root, prior.noise)


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


def _scale(
    damage: Float[np.ndarray, " n"],
    total: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    start: float,
) -> float:
    """Return log-loss per damage by weighted least squares, within a factor of 100 of the start."""
    below = (weight * damage**2).sum()
    slope = (weight * damage * total).sum() / below if below > 0 else start
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
