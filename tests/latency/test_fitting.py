import dataclasses

import numpy as np
import pytest

from autoprune.latency import fitting as module
from autoprune.latency.fitting import Settings, fit, predict
from autoprune.latency.kernels import FAMILIES, from_layers
from autoprune.latency.roofline import Roofline
from autoprune.latency.samples import joined, network_samples
from autoprune.testing.measurements import (
    CONSTANTS,
    ORIGIN,
    SLOW,
    TRUTH,
    kernel_grid,
    measured_kernels,
    measured_networks,
    network_ms,
    random_layers,
)

SETTINGS = Settings(alignment=8, bytes_per_element=2)


def test_fit_extrapolates_to_narrower_networks():
    fitted = fit(network_samples(measured_networks()), SETTINGS)
    rng = np.random.default_rng(9)
    for _ in range(10):
        rows = random_layers(rng)
        narrow = [[r[0], *(c if c <= 3 else c // 2 for c in r[1:3]), *r[3:]] for r in rows]
        for row in narrow:
            row[5] = row[1] if row[0] == "dwconv" else 1
        table = from_layers(narrow, "tensorrt")
        truth, guess = (
            network_ms(table, rooflines, constant)
            for rooflines, constant in (
                (TRUTH, CONSTANTS[ORIGIN]),
                (fitted.rooflines, fitted.constants_ms[ORIGIN]),
            )
        )
        assert guess == pytest.approx(truth, rel=0.08)


def test_one_outlier_hardly_matters():
    measurements = measured_networks()
    broken = [dataclasses.replace(measurements[0], latency_ms=50.0), *measurements[1:]]
    samples = network_samples(measurements)
    clean, robust = (
        predict(samples, fit(network_samples(m), SETTINGS)) for m in (measurements, broken)
    )
    np.testing.assert_allclose(robust[1:], clean[1:], rtol=0.08)


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_fit_predicts_as_the_predictor_does(overlap):
    measurements = measured_networks(overlap=overlap)
    samples = network_samples(measurements)
    fitted = fit(samples, dataclasses.replace(SETTINGS, overlap=overlap))
    for measurement, value in zip(measurements, predict(samples, fitted), strict=True):
        constant = fitted.constants_ms[measurement.origin]
        exact = network_ms(measurement.kernels, fitted.rooflines, constant, overlap)
        assert value == pytest.approx(exact, rel=1e-5)


def test_fit_is_the_same_every_time():
    samples = network_samples(measured_networks(noise=0.1))
    assert fit(samples, SETTINGS) == fit(samples, SETTINGS)


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_derivatives_are_exact(overlap):
    settings = dataclasses.replace(SETTINGS, overlap=overlap)
    mixed = joined(
        [network_samples(measured_networks(6)), measured_kernels(kernel_grid((8, 24), (16,)))]
    )
    problem = module._Problem(mixed, settings, np.full((len(FAMILIES), 2), 8.0))
    rng = np.random.default_rng(0)
    point = np.concatenate([np.log([0.01, 300, 12]), 0.1 * rng.standard_normal(problem.size - 3)])
    _, jacobian = problem.latency(point)
    step = 1e-6
    for i in range(problem.size):
        shift = step * np.eye(problem.size)[i]
        up, down = (problem.latency(point + sign * shift)[0] for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, i], (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


def test_kernels_alone_give_back_the_roofline_and_its_alignment():
    truth = TRUTH | {"conv": Roofline(0.05, 900.0, 12.0, 16)}
    rows = kernel_grid((8, 12, 16, 20, 40, 72, 96, 120, 200), (12, 16, 40, 64, 100))
    fitted = fit(
        measured_kernels(rows, rooflines=truth), dataclasses.replace(SETTINGS, alignment=None)
    )
    conv = fitted.rooflines["conv"]
    assert conv.alignment == 16
    assert conv.overhead_ms == pytest.approx(0.05, rel=0.05)
    assert conv.peak_gmacs_per_s == pytest.approx(900, rel=0.05)
    assert conv.bandwidth_gb_s == pytest.approx(12, rel=0.1)
    assert fitted.rooflines["dwconv"].alignment == 1
    assert fitted.constants_ms == {}


def test_kernels_fit_the_shape_and_networks_the_constant():
    many = measured_kernels(kernel_grid((16, 64, 256, 512), (16, 64, 256), "conv"))
    few = network_samples(measured_networks(12))
    fitted = fit(joined([few, many]), SETTINGS)
    conv = fitted.rooflines["conv"]
    assert conv.peak_gmacs_per_s == pytest.approx(TRUTH["conv"].peak_gmacs_per_s, rel=0.05)
    difference = fitted.constants_ms[SLOW] - fitted.constants_ms[ORIGIN]
    assert difference == pytest.approx(0.8, rel=0.25)


def test_unknown_origin_is_as_lean_as_the_leanest():
    measurements = measured_networks(8)
    fitted = fit(network_samples([m for m in measurements if m.origin == ORIGIN]), SETTINGS)
    other = network_samples([m for m in measurements if m.origin == SLOW])
    assert fitted.constants(other).tolist() == [fitted.constants_ms[ORIGIN]] * 2


def test_many_kernels_are_thinned_to_the_same_ones_every_time():
    samples = measured_kernels(noise=0.1)
    once, twice = (module._thinned(samples, 20) for _ in range(2))
    assert len(once) == 20
    assert once.names == twice.names
    assert fit(samples, SETTINGS) == fit(samples, SETTINGS)
