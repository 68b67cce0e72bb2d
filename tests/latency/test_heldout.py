import numpy as np
import pytest

from autoprune.latency.fitting import Settings
from autoprune.latency.heldout import (
    choose_kind,
    fit_kind,
    flops_only,
    held_out,
    held_out_error,
    held_out_with,
    kinds_for,
    nested,
    splits,
)
from autoprune.latency.samples import EXACT, joined, network_samples
from autoprune.testing.measurements import kernel_grid, measured_kernels, measured_networks

SETTINGS = Settings(alignment=8, bytes_per_element=2)


def seen(part):
    """A model that predicts how many samples it was fitted on."""
    return lambda other: np.full(len(other), float(len(part)))


def test_every_group_is_predicted_without_itself():
    samples = measured_kernels()
    fitted_on = []

    def make(part):
        fitted_on.append(set(part.groups))
        return lambda other: np.full(len(other), float(len(fitted_on)))

    number = held_out(samples, samples.groups, make)
    for group, fold in zip(samples.groups, number.astype(int), strict=True):
        assert group not in fitted_on[fold - 1]
    assert len(fitted_on) == len(set(samples.groups))


def test_corrupting_a_network_does_not_change_its_own_prediction():
    samples = network_samples(measured_networks(10, noise=0.1))
    corrupt = network_samples(measured_networks(10, noise=0.1))
    corrupt.latency_ms[0] = 1e4

    def make(part):
        return fit_kind("roofline", part, SETTINGS)

    honest, other = (held_out(s, s.groups, make) for s in (samples, corrupt))
    assert honest[0] == other[0]
    assert (honest[1:] != other[1:]).all()


def test_kernels_beside_networks_are_never_held_out():
    mixed = joined([network_samples(measured_networks(5)), measured_kernels()])
    held = held_out_with(mixed, mixed.groups)
    assert held.tolist() == mixed.whole.tolist()
    counts = held_out(mixed, mixed.groups, seen)
    assert set(counts[mixed.whole]) == {len(mixed) - 1}
    assert set(counts[~mixed.whole]) == {len(mixed)}


def test_few_networks_leave_the_kernels_to_be_held_out():
    mixed = joined([network_samples(measured_networks(3)), measured_kernels()])
    assert held_out_with(mixed, mixed.groups).tolist() == (~mixed.whole).tolist()


@pytest.mark.parametrize(("groups", "folds"), [(60, 60), (61, 10)])
def test_many_groups_are_dealt_to_folds(groups, folds):
    labels = list(range(groups)) * 2
    outside = list(splits(labels, np.ones(2 * groups, bool)))
    assert len(outside) == folds
    assert (np.sum([~o for o in outside], axis=0) == 1).all()


def test_kinds_follow_from_what_was_measured():
    assert kinds_for(network_samples(measured_networks(3))) == ("roofline", "learned")
    assert kinds_for(measured_kernels()) == ("roofline", "learned", "table")


def test_plain_roofline_is_chosen_where_nothing_is_better():
    samples = measured_kernels(kernel_grid((8, 16, 32, 64), (16, 64)), noise=0.05)
    assert choose_kind(samples, SETTINGS, samples.groups) == "roofline"


def test_table_is_chosen_where_a_smooth_residual_is_left():
    samples = measured_kernels(
        kernel_grid((16, 32, 64, 128, 256)), factor=lambda s: s["cin"] ** 0.4 * s["outputs"] ** -0.3
    )
    assert choose_kind(samples, SETTINGS, samples.groups) == "table"


def test_nested_choice_is_no_better_than_the_best_kind_alone():
    rows = kernel_grid((8, 16, 32, 64, 128, 256), (16, 128))
    samples = measured_kernels(rows, factor=lambda s: s["outputs"] ** -0.3)
    errors = {}
    for kind in ("roofline", "table"):
        predicted = held_out(
            samples, samples.groups, lambda part, k=kind: fit_kind(k, part, SETTINGS), folds=5
        )
        errors[kind] = np.mean(np.abs(predicted / samples.latency_ms - 1))
    whole = nested(samples, samples.groups, SETTINGS)
    error = np.mean(np.abs(whole / samples.latency_ms - 1))
    assert min(errors.values()) <= error + 1e-12
    assert error < errors["roofline"]


def test_multiply_accumulates_alone_are_fitted_well():
    samples = measured_kernels()
    macs, _ = samples.shapes.work(EXACT, 1)
    exact = samples.take(np.ones(len(samples), bool))
    exact.latency_ms[:] = 0.3 + 2e-6 * macs
    np.testing.assert_allclose(flops_only(exact)(exact), exact.latency_ms, rtol=1e-3)
    assert np.mean(np.abs(flops_only(samples)(samples) / samples.latency_ms - 1)) > 0.02


def test_error_is_the_mean_of_relative_errors():
    error = held_out_error(np.array([1.04, 1.82, 4.44]), np.array([1.0, 2.0, 4.0]))
    assert error.mape == pytest.approx(0.08, abs=1e-4)
    assert (error.within_5, error.within_10, error.within_20) == (0.3333, 0.6667, 1.0)
    assert error.spearman == 1.0


def test_constant_model_ranks_nothing():
    assert held_out_error(np.full(3, 2.0), np.array([1.0, 2.0, 4.0])).spearman == 0.0
