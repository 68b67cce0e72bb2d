import math

import numpy as np
import pytest

from autoprune.strategy.damage import Damage
from autoprune.strategy.levels import plateau_levels
from autoprune.strategy.problem import Problem
from autoprune.strategy.surrogate import (
    Basis,
    Prior,
    Saturation,
    fit,
    leave_one_out,
    rank_within_bins,
)
from autoprune.testing.samplers import made_up_problem


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
    spread = made.spread(0.5, linear=0.5, root=0.35, pair=0.25, depth=1.0)
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


def test_posterior_is_that_of_conditioning_the_joint_normal():
    made, features, y, weight, ms = evaluations(12)
    prior = Prior(cut=1e9)
    found = fit(made, features, y, weight, ms, scale=0.5, prior=prior)
    scale = (weight * features[:, 0] * y).sum() / (weight * features[:, 0] ** 2).sum()
    spread = made.spread(scale, linear=0.5, root=0.35, pair=0.25, depth=1.0)
    # In the space of evaluations instead of coefficients.
    kernel = features * spread**2 @ features.T + np.diag(prior.noise**2 / weight)
    new = random_candidates(made.space, np.random.default_rng(9), 7)
    unseen = made.features(*new)
    at = unseen
    cross = at * spread**2 @ features.T
    mean = at[:, 0] * scale + cross @ np.linalg.solve(kernel, y - scale * features[:, 0])
    covariance = at * spread**2 @ at.T - cross @ np.linalg.solve(kernel, cross.T)
    np.testing.assert_allclose(found.predict(unseen)[0], mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.predict(unseen)[1], np.diag(covariance), rtol=1e-5, atol=1e-9)


def test_left_out_predictions_are_those_of_fits_without():
    made, features, y, weight, ms = evaluations(10)
    whole = fit(made, features, y, weight, ms, scale=0.5, prior=Prior(cut=1e9))
    predicted, standardised = leave_one_out(whole, features, y, weight)
    noise = whole.noise
    for out in range(10):
        rest = np.arange(10) != out
        # The same prior: what the scale is fitted to must not change with what is left out.
        scaled = features[rest] * whole.spread * np.sqrt(weight[rest])[:, None] / noise
        precision = np.eye(features.shape[1]) + scaled.T @ scaled
        right = scaled.T @ (y[rest] * np.sqrt(weight[rest]) / noise)
        right[0] += 1.0
        mean = np.linalg.solve(precision, right)
        at = features[out] * whole.spread
        np.testing.assert_allclose(predicted[out], at @ mean, rtol=1e-6)
        variance = at @ np.linalg.solve(precision, at) + noise**2 / weight[out]
        error = (y[out] - at @ mean) / np.sqrt(variance)
        np.testing.assert_allclose(standardised[out], error, rtol=1e-6)


def test_believing_keeps_the_mean_and_equals_an_evaluation_as_predicted():
    made, features, y, weight, ms = evaluations(12)
    first = fit(made, features[:8], y[:8], weight[:8], ms[:8], scale=0.5, prior=Prior(cut=1e9))
    believed = first.believing(features[8:])
    at = made.features(*random_candidates(made.space, np.random.default_rng(9), 7))
    np.testing.assert_allclose(believed.predict(at)[0], first.predict(at)[0])
    scaled = features * first.spread / first.noise
    scaled[:8] *= np.sqrt(weight[:8])[:, None]
    covariance = np.linalg.inv(np.eye(features.shape[1]) + scaled.T @ scaled)
    seen = at * first.spread
    variance = np.einsum("ni,ij,nj->n", seen, covariance, seen)
    np.testing.assert_allclose(believed.predict(at)[1], variance, rtol=1e-5, atol=1e-9)


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
    usual = made.spread(scale, linear=0.5, root=0.35, pair=0.25, depth=1.0)
    assert (found.judgement >= 0.5) == understood
    np.testing.assert_allclose(found.spread[1:], usual[1:] * (1.0 if understood else 2.0))


def test_draws_have_the_posterior_moments():
    made, features, y, weight, ms = evaluations(12)
    found = fit(made, features, y, weight, ms, scale=0.5, prior=Prior(cut=1e9))
    drawn = found.draws(np.random.default_rng(0), 20_000, temper=0.5)
    at = made.features(*random_candidates(made.space, np.random.default_rng(9), 5))
    mean, variance = found.predict(at)
    values = at @ drawn.T
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
