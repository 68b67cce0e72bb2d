import dataclasses

import lightgbm as lgb
import numpy as np
import pytest

from autoprune.errors import ProfileError
from autoprune.latency.fitting import Settings, fit, predict
from autoprune.latency.heldout import Corrected, held_out, splits
from autoprune.latency.kernels import FAMILIES
from autoprune.latency.learned import (
    HULL,
    MARGIN,
    Hull,
    LearnedCorrection,
    Model,
    Training,
    compact,
    default_training,
    dimensions,
    train,
)
from autoprune.latency.samples import Measurement, concatenated, network_samples
from autoprune.testing.measurements import (
    CONSTANTS,
    kernel_grid,
    measured_kernels,
    measured_networks,
)

SETTINGS = Settings(alignment=8, bytes_per_element=2)
SMALL = Training(rounds=150, leaves=15, rate=0.1, least_rows=5)


def wobble(shapes):
    """A device that likes some sizes better than its roofline says."""
    return np.where(shapes["cout"] % 32 == 0, 0.7, 1.3) * np.where(shapes["inputs"] > 100, 1.2, 1)


def error(predicted, samples):
    return float(np.mean(np.abs(predicted / samples.latency_ms - 1)))


@pytest.fixture(scope="module")
def measured():
    couts = (8, 16, 24, 32, 40, 48, 64, 72, 96, 104, 128, 160)
    return measured_kernels(kernel_grid(couts), factor=wobble, noise=0.01)


@pytest.fixture(scope="module")
def learned(measured):
    fitted = fit(measured, SETTINGS)
    return fitted, LearnedCorrection(train(measured, fitted, SMALL))


def test_learned_beats_the_roofline_where_there_is_a_residual(measured):
    def make(part):
        fitted = fit(part, SETTINGS)
        return Corrected(fitted, LearnedCorrection(train(part, fitted, SMALL)))

    bare = held_out(measured, measured.groups, lambda part: Corrected(fit(part, SETTINGS)), folds=4)
    better = held_out(measured, measured.groups, make, folds=4)
    assert error(bare, measured) > 0.15
    assert error(better, measured) < 0.6 * error(bare, measured)


def test_training_is_the_same_every_time(measured, learned):
    fitted, correction = learned
    assert train(measured, fitted, SMALL) == correction.models


def test_outside_the_hull_the_roofline_predicts(learned):
    _, correction = learned
    hull = correction.models["conv"].hull
    inside = kernel_grid((8,), (16,))
    assert hull.contains(dimensions(inside)).all()
    assert (correction.log_factor(inside) != 0).all()
    far = kernel_grid((int(160 * MARGIN) + 1,), (64,))
    near = kernel_grid((int(160 * MARGIN),), (64,))
    assert (correction.log_factor(far) == 0).all()
    assert (correction.log_factor(near) != 0).all()
    five = dataclasses.replace(inside, values=inside.values.copy())
    five.values[:, 7] = 25  # taps of a 5 x 5 kernel, never measured
    assert (correction.log_factor(five) == 0).all()
    other = dataclasses.replace(inside, family=np.full(len(inside), FAMILIES.index("dwconv")))
    assert (correction.log_factor(other) == 0).all()


@pytest.mark.parametrize("name", HULL)
def test_hull_bounds_every_dimension(name):
    shape = dimensions(kernel_grid((32,), (32,)))
    point = {key: value[:1] for key, value in shape.items()}
    bounds = {key: float(value[0]) for key, value in point.items()}
    hull = Hull(bounds, bounds)
    assert hull.contains(point).all()
    margin = 1 if name in ("taps", "stride") else MARGIN
    for factor, inside in ((margin, True), (1.01 * margin, False), (1 / margin, True)):
        moved = point | {name: point[name] * factor}
        assert hull.contains(moved).all() == inside


def test_sums_of_kernels_are_enough_to_learn_from():
    """Networks whose kernels each deviate by a factor that only their sums show."""
    measurements = measured_networks(60, seed=4)
    samples = network_samples(measurements)
    fitted = fit(samples, SETTINGS)
    kernel_ms = fitted.kernel_ms(samples) * wobble(samples.shapes)
    totals = np.bincount(samples.sample, kernel_ms, len(samples))
    slower = [
        Measurement(m.network, m.origin, float(t) + CONSTANTS[m.origin], m.kernels)
        for m, t in zip(measurements, totals, strict=True)
    ]
    samples = network_samples(slower)

    def make(part):
        again = fit(part, SETTINGS)
        return Corrected(again, LearnedCorrection(train(part, again, SMALL)))

    bare = held_out(samples, samples.groups, lambda part: Corrected(fit(part, SETTINGS)), folds=3)
    better = held_out(samples, samples.groups, make, folds=3)
    assert error(better, samples) < 0.9 * error(bare, samples)


def test_every_round_lowers_the_error_of_the_sums():
    samples = network_samples(measured_networks(30, noise=0.2))
    fitted = fit(samples, SETTINGS)
    errors = [error(predict(samples, fitted), samples)]
    for rounds in (10, 40):
        training = Training(rounds=rounds, leaves=7, rate=0.3, least_rows=5)
        model = Corrected(fitted, LearnedCorrection(train(samples, fitted, training)))
        errors.append(error(model(samples), samples))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]


def test_families_without_spread_or_rows_get_no_model():
    same = kernel_grid((32,) * 30, (32,))
    one = same.take(same["inputs"] == 49)
    samples = measured_kernels(concatenated([one, kernel_grid((16, 32), (8,), "linear")]))
    fitted = fit(samples, SETTINGS)
    assert train(samples, fitted, SMALL) == {}
    assert LearnedCorrection({}).log_factor(samples.shapes).tolist() == [0.0] * len(samples)


def test_more_rows_grow_larger_trees():
    few = default_training(measured_kernels(kernel_grid((8,), (8,))))
    couts = tuple(range(8, 8 * 60, 8))
    more = default_training(measured_kernels(kernel_grid(couts, tuple(range(8, 8 * 12, 8)))))
    assert few.leaves < more.leaves


def test_folds_share_no_group():
    groups = [1, 1, 2, 3, 3, 4]
    held = np.array([True] * 5 + [False])
    for outside in splits(groups, held, 3):
        inside = {g for g, out in zip(groups, outside, strict=True) if not out}
        rest = {g for g, out in zip(groups, outside, strict=True) if out}
        assert not inside & rest
        assert 4 in rest


def test_model_is_its_text(learned):
    _, correction = learned
    model = correction.models["conv"]
    again = LearnedCorrection({"conv": Model(model.text, model.hull)})
    rows = kernel_grid()
    assert again.log_factor(rows).tolist() == correction.log_factor(rows).tolist()


def test_trees_of_another_version_are_refused(learned):
    _, correction = learned
    model = correction.models["conv"]
    other = LearnedCorrection({"conv": Model(model.text.replace("depth_cout", "d"), model.hull)})
    with pytest.raises(ProfileError, match=r"conv trees.*calibrate again"):
        other.log_factor(kernel_grid())


def test_text_that_is_no_model_is_refused(learned):
    _, correction = learned
    with pytest.raises(ProfileError, match="unreadable trees"):
        LearnedCorrection({"conv": Model("trees", correction.models["conv"].hull)})


def test_compact_text_predicts_what_the_whole_text_does():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(400, 5))
    data = lgb.Dataset(seen, seen[:, 0] * seen[:, 1], params={"verbose": -1})
    booster = lgb.train({"verbose": -1, "num_leaves": 15}, data, 30)
    text = booster.model_to_string()
    short = compact(text)
    again = lgb.Booster(model_str=short)
    assert len(short) < len(text) / 2
    assert again.num_trees() == 30
    np.testing.assert_allclose(again.predict(seen), booster.predict(seen), atol=1e-3)
    assert compact(short) == short
