import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from autoprune.strategy.damage import Damage
from autoprune.strategy.levels import plateau_levels
from autoprune.strategy.problem import Problem
from autoprune.strategy.surrogate import (
    Basis,
    Evaluations,
    Prior,
    Saturation,
    fit,
    rank_within_bins,
)
from autoprune.testing.samplers import made_up_problem

#: Of the coefficients, by default.
SPREAD = {name: getattr(Prior(), name) for name in ("linear", "root", "pair", "depth")}


class Paired(Problem):
    """A problem whose groups are neighbours in a chain."""

    @property
    def pairs(self):
        return tuple((g, g + 1) for g in range(len(self.space.dimensions) - 1))


def basis(seed=0, blocks=3):
    made = made_up_problem(blocks, 8)
    rng = np.random.default_rng(seed)
    curves = [np.sort(rng.uniform(size=9))[::-1] * (np.arange(9) < 8) for _ in range(blocks + 1)]
    damage = Damage(tuple(curves), rng.uniform(size=blocks))
    return Basis(Paired(made.space, made.latency), damage)


def random_candidates(space, rng, count):
    ratios = rng.uniform(size=(count, len(space.dimensions)))
    return space.realise(ratios, rng.uniform(size=(count, len(space.blocks))) < 0.3)


def evaluations(count, seed=0):
    made, rng = basis(), np.random.default_rng(seed)
    widths, keep = random_candidates(made.space, rng, count)
    features = made.features(widths, keep)
    spread = made.spread(0.5, **SPREAD)
    truth = 0.5 * rng.normal(size=len(spread)) * spread
    truth[0] = spread[0]
    y = features @ truth + rng.normal(0.0, 0.04, count)
    return made, features, y, rng.uniform(0.3, 1.0, count), rng.uniform(1.0, 2.0, count)


def test_features_term_by_term():
    made, rng = basis(), np.random.default_rng(1)
    widths, keep = random_candidates(made.space, rng, 10)
    active = made.space.active(keep)
    for row, found in enumerate(made.features(widths, keep)):
        part = [
            curve[w] / curve[2] if alive else 0.0
            for curve, w, alive in zip(made.damage.groups, widths[row], active[row], strict=True)
        ]
        total = sum(p * curve[2] for p, curve in zip(part, made.damage.groups, strict=True))
        depth = sum(made.damage.blocks[~keep[row]])
        total += depth
        expected = [total, *part, *np.sqrt(part)]
        expected += [np.sqrt(part[g] * part[g + 1]) for g in range(len(part) - 1)]
        np.testing.assert_allclose(found, [*expected, *(~keep[row]), depth], atol=1e-12)


def process(made, features, seen, misfit):
    """Covariance of what coefficients and misfit tell of two sets of candidates, term by term."""
    groups, pairs, blocks = 4, 3, 3

    def place(row):
        return np.append(row[1 + groups : 1 + 2 * groups], row[-1 - blocks : -1])

    assert made.edges.shape == (pairs, 2)
    return np.array(
        [
            [misfit**2 * np.exp(-np.abs(place(one) - place(other)).sum()) for other in seen]
            for one in features
        ]
    )


def conditioned(made, found, at):
    """Mean and variance of a joint normal distribution of evaluations, without coefficients."""
    seen, spread = found.seen, found.spread
    noise = np.diag(found.noise**2 / seen.weight)
    heavy = 1.0 / np.sqrt(seen.weight)
    misfit = process(made, seen.features, seen.features, found.misfit)
    kernel = seen.features * spread**2 @ seen.features.T + misfit * np.outer(heavy, heavy) + noise
    cross = at * spread**2 @ seen.features.T
    cross = cross + process(made, at, seen.features, found.misfit) * heavy
    surprise = seen.total - spread[0] * seen.features[:, 0]
    mean = at[:, 0] * spread[0] + cross @ np.linalg.solve(kernel, surprise)
    prior = at * spread**2 @ at.T + process(made, at, at, found.misfit)
    return mean, np.diag(prior - cross @ np.linalg.solve(kernel, cross.T))


def test_posterior_is_that_of_conditioning_the_joint_normal():
    made, features, y, weight, ms = evaluations(12)
    found = fit(made, features, y, weight, ms, scale=0.5, prior=Prior(cut=1e9))
    scale = (weight * features[:, 0] * y).sum() / (weight * features[:, 0] ** 2).sum()
    expected = made.spread(scale, **SPREAD)
    np.testing.assert_allclose(found.spread, expected)
    at = made.features(*random_candidates(made.space, np.random.default_rng(9), 7))
    mean, variance = conditioned(made, found, at)
    np.testing.assert_allclose(found.predict(at)[0], mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.predict(at)[1], variance, rtol=1e-5, atol=1e-9)


def test_left_out_predictions_are_those_of_fits_without():
    made, features, y, weight, ms = evaluations(10)
    whole = fit(made, features, y, weight, ms, scale=0.5, prior=Prior(cut=1e9))
    predicted = whole.left_out()
    for out in range(10):
        rest = np.arange(10) != out
        # The same prior: what the scale is fitted to must not change with what is left out.
        seen = Evaluations(features[rest], y[rest], weight[rest])
        without = dataclasses.replace(whole, seen=seen)
        # Its misfit counts as much as its evaluation does.
        mean, _ = conditioned(made, without, features[out : out + 1])
        linear = features[out] @ without.theta
        share = 1.0 / np.sqrt(weight[out])
        expected = linear + share * (without.predict(features[out : out + 1])[0][0] - linear)
        np.testing.assert_allclose(without.predict(features[out : out + 1])[0], mean, rtol=1e-6)
        np.testing.assert_allclose(predicted[out], expected, rtol=1e-5)


def test_believing_keeps_the_mean_and_equals_an_evaluation_as_predicted():
    made, features, y, weight, ms = evaluations(12)
    first = fit(made, features[:8], y[:8], weight[:8], ms[:8], scale=0.5, prior=Prior(cut=1e9))
    believed = first.believing(features[8:])
    at = made.features(*random_candidates(made.space, np.random.default_rng(9), 7))
    np.testing.assert_allclose(believed.predict(at)[0], first.predict(at)[0], atol=1e-9)
    mean, variance = conditioned(made, believed, at)
    np.testing.assert_allclose(mean, first.predict(at)[0], atol=1e-9)
    np.testing.assert_allclose(believed.predict(at)[1], variance, rtol=1e-5, atol=1e-9)
    assert (believed.predict(at)[1] < first.predict(at)[1]).all()


def test_the_misfit_is_the_one_under_which_evaluations_are_most_probable():
    made, features, y, weight, ms = evaluations(60)
    truth = y + 0.3 * np.random.default_rng(3).normal(size=60)
    for values, misfit in ((y, 0.04), (truth, 0.16)):
        found = fit(made, features, values, weight, ms, scale=0.5, prior=Prior(cut=1e9))
        assert found.misfit == pytest.approx(misfit)
        heavy = np.sqrt(weight)
        for each in (0.04, 0.08, 0.16):
            other = dataclasses.replace(found, misfit=each)
            covariance = features * found.spread**2 @ features.T * np.outer(heavy, heavy)
            covariance += process(made, features, features, each) + 0.02**2 * np.eye(60)
            density = multivariate_normal(heavy * features[:, 0] * found.spread[0], covariance)
            constant = 30 * np.log(2 * np.pi)
            assert other.evidence == pytest.approx(density.logpdf(heavy * values) + constant)


def test_neighbours_of_what_is_better_than_foretold_are_foretold_better():
    made, features, y, _, ms = evaluations(30)
    lucky = y.copy()
    lucky[7] -= 0.5
    usual, found = (
        fit(
            made,
            features,
            values,
            np.ones(30),
            ms,
            scale=0.5,
            prior=Prior(cut=1e9, linear=1e-3, root=1e-3, pair=1e-3, depth=1e-3, misfit=0.2),
        )
        for values in (y, lucky)
    )
    near = features[7:8].copy()
    near[0, 5] += 0.05
    gains = (
        usual.predict(np.vstack([near, features]))[0]
        - found.predict(np.vstack([near, features]))[0]
    )
    assert gains[0] > 0.2
    assert gains[0] > 20 * np.median(np.abs(gains[1:]))


def test_order_of_evaluations_does_not_matter():
    data = evaluations(30)
    order = np.random.default_rng(0).permutation(30)
    one = fit(*data, scale=0.5, prior=Prior())
    other = fit(data[0], *(column[order] for column in data[1:]), scale=0.5, prior=Prior())
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-9)
    np.testing.assert_allclose(one.judgement, other.judgement)


def test_destroyed_networks_count_less():
    made, features, y, weight, ms = evaluations(12)
    y[3] = 3.0
    lighter = weight * np.where(np.arange(12) == 3, 0.2, 1.0)
    cut = fit(made, features, y, weight, ms, scale=0.5, prior=Prior(cut=2.9))
    by_hand = fit(made, features, y, lighter, ms, scale=0.5, prior=Prior(cut=1e9))
    np.testing.assert_allclose(cut.mean, by_hand.mean)


@pytest.mark.parametrize("understood", [True, False])
def test_corrections_may_be_larger_where_the_model_ranks_badly(understood):
    made, features, y, weight, ms = evaluations(40)
    if not understood:
        y = np.random.default_rng(5).uniform(0.0, 1.0, 40)
    found = fit(made, features, y, weight, ms, scale=0.5, prior=Prior(cut=1e9))
    total = features[:, 0]
    scale = (weight * total * y).sum() / (weight * total**2).sum()
    usual = made.spread(scale, **SPREAD)
    assert (found.judgement >= 0.5) == understood
    np.testing.assert_allclose(found.spread[1:], usual[1:] * (1.0 if understood else 2.0))


def test_draws_have_the_posterior_moments():
    made, features, y, weight, ms = evaluations(12)
    found = fit(made, features, y, weight, ms, scale=0.5, prior=Prior(cut=1e9))
    drawn = found.draws(np.random.default_rng(0), 20_000, temper=0.5)
    at = made.features(*random_candidates(made.space, np.random.default_rng(9), 5))
    values = at @ drawn.T
    # What the coefficients tell, without the misfit.
    scaled = at * found.spread
    mean = scaled @ found.mean
    variance = (np.linalg.solve(found.root, scaled.T) ** 2).sum(axis=0)
    # Six standard errors of 20,000 draws: one comparison in 10^8 fails by chance.
    error = 6.0 * 0.5 * np.sqrt(variance / 20_000)
    assert (np.abs(values.mean(axis=1) - mean) < error).all()
    np.testing.assert_allclose(values.std(axis=1), 0.5 * np.sqrt(variance), rtol=0.04)


def test_costs_are_predictions_where_those_do_not_fall():
    made = basis()
    problem = Paired(made.space, made_up_problem(3, 8).latency)
    grid = plateau_levels(problem)
    theta = np.zeros(
        (2, made.features(*random_candidates(made.space, np.random.default_rng(0), 1)).shape[1])
    )
    theta[0] = np.random.default_rng(0).uniform(size=theta.shape[1])
    theta[1, 1:5] = -1.0
    costs = made.costs(grid, theta)
    rng = np.random.default_rng(2)
    levels = rng.integers(grid.counts, size=(9, 4))
    keep = rng.uniform(size=(9, 3)) < 0.6
    widths = np.where(made.space.active(keep), grid.widths[np.arange(4), levels], 8)
    found = costs.at(made.space, levels, keep, np.zeros(9, int))
    features = made.features(widths, keep)
    np.testing.assert_allclose(found, features @ theta[0], atol=1e-4)
    assert (np.diff(costs.groups, axis=2) > 0).all()
    assert (costs.blocks > 0).all()


def test_groups_that_cost_nothing_are_told_apart_by_their_ratio():
    space = made_up_problem(1, 8).space
    dead = Damage((np.zeros(9), np.zeros(9)), np.zeros(1))
    made = Basis(made_up_problem(1, 8), dead)
    np.testing.assert_allclose(made.fractions(np.array([[8, 5], [2, 2]])), [[0.0, 0.5], [1.0, 1.0]])
    widths, keep = random_candidates(space, np.random.default_rng(0), 6)
    features = made.features(widths, keep)
    found = fit(made, features, np.ones(6), np.ones(6), np.ones(6), scale=1.0, prior=Prior())
    assert np.isfinite(found.mean).all()


def test_ranks_are_judged_among_similar_latencies():
    ms = np.arange(12.0)
    actual = -ms + np.tile([0.0, 3.0, 6.0, 9.0], 3)
    assert rank_within_bins(actual, actual, ms) == pytest.approx(1.0)
    # Latency itself ranks across bins, but inside each the wrong way round.
    assert np.corrcoef(-ms, actual)[0, 1] > 0
    assert rank_within_bins(-ms, actual, ms) == pytest.approx(-1.0)
    assert rank_within_bins(np.zeros(12), actual, ms) == 0.0


def test_without_evaluations_the_damage_is_believed():
    made = basis()
    none = np.zeros((0, len(made.spread(1.0, linear=1.0, root=1.0, pair=1.0, depth=1.0))))
    found = fit(made, none, np.zeros(0), np.zeros(0), np.zeros(0), scale=0.7, prior=Prior())
    at = made.features(*random_candidates(made.space, np.random.default_rng(9), 5))
    np.testing.assert_allclose(found.predict(at)[0], 0.7 * at[:, 0])
    assert found.judgement is None


def test_what_saturates_at_guessing_is_found():
    made, features, y, weight, ms = evaluations(40)
    ceiling = 1.3
    saturated = ceiling * (1.0 - np.exp(-y / ceiling))
    slope = np.exp(-y / ceiling)
    found = fit(
        made, features, saturated, weight, ms, scale=0.5, prior=Prior(cut=1e9, ceiling=ceiling)
    )
    # The same evaluations without a ceiling, as exact as the saturated ones are.
    plain = fit(made, features, y, weight * slope**2, ms, scale=0.5, prior=Prior(cut=1e9))
    at = made.features(*random_candidates(made.space, np.random.default_rng(9), 7))
    for each, expected in zip(found.totals(at), plain.predict(at), strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-6, atol=1e-9)
    mean, variance = found.predict(at)
    total, spread = found.totals(at)
    np.testing.assert_allclose(mean, ceiling * (1.0 - np.exp(-total / ceiling)))
    np.testing.assert_allclose(variance, np.exp(-2.0 * total / ceiling) * spread)


def test_saturation_is_undone_by_its_inverse_and_its_slope_is_its_derivative():
    saturation = Saturation(1.7)
    total = np.array([-0.2, 0.0, 0.3, 2.0, 5.0])
    np.testing.assert_allclose(saturation.inverse(saturation(total)), total, atol=1e-12)
    numeric = (saturation(total + 1e-6) - saturation(total - 1e-6)) / 2e-6
    np.testing.assert_allclose(saturation.slope(total), numeric, rtol=1e-6)
    beyond = saturation.inverse(np.array([1.69, 1.7, 9.0]))
    assert (beyond == beyond[0]).all()
    assert np.isfinite(beyond).all()
    none = Saturation(math.inf)
    np.testing.assert_array_equal(none(total), total)
    np.testing.assert_array_equal(none.inverse(total), total)
    np.testing.assert_array_equal(none.slope(total), 1.0)
