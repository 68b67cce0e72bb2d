import dataclasses

import numpy as np
import pytest

from autoprune.latency.fitting import Settings, fit
from autoprune.latency.grid import GridCorrection, kernels_from_text, kernels_to_text
from autoprune.latency.heldout import Corrected
from autoprune.latency.samples import concatenated, joined, network_samples
from autoprune.testing.measurements import kernel_grid, measured_kernels, measured_networks

SETTINGS = Settings(alignment=1, bytes_per_element=2)


def factor(shapes):
    """A residual that is linear in the logarithm of every axis."""
    return shapes["cin"] ** 0.3 * shapes["cout"] ** -0.2 * shapes["outputs"] ** 0.1


@pytest.fixture(scope="module")
def measured():
    both = concatenated([kernel_grid(), kernel_grid(family="linear")])
    return measured_kernels(both, factor=factor)


@pytest.fixture(scope="module")
def model(measured):
    fitted = fit(measured, SETTINGS)
    return Corrected(fitted, GridCorrection(measured, fitted))


def test_measured_kernels_are_predicted_exactly(measured, model):
    np.testing.assert_allclose(model(measured), measured.latency_ms, rtol=1e-9)


def test_what_is_linear_in_logarithms_is_interpolated_exactly(measured, model):
    fitted = model.fitted
    latency = fitted.kernel_ms(measured) * factor(measured.shapes)
    made = dataclasses.replace(measured, latency_ms=latency)
    grid = GridCorrection(made, fitted)
    rows = kernel_grid((20, 100), (24, 90))
    np.testing.assert_allclose(grid.log_factor(rows), np.log(factor(rows)), atol=1e-9)


def test_beyond_them_the_nearest_scales_the_roofline(model):
    beyond, edge = kernel_grid((512,), (128,)), kernel_grid((128,), (128,))
    np.testing.assert_allclose(
        model.correction.log_factor(beyond), model.correction.log_factor(edge)
    )


def test_missing_corners_leave_the_nearest():
    full = measured_kernels(factor=factor)
    diagonal = full.take(full.shapes["cin"] * 2 == full.shapes["cout"])
    fitted = fit(full, SETTINGS)
    grid = GridCorrection(diagonal, fitted)
    exact = np.log(diagonal.latency_ms / fitted.kernel_ms(diagonal))
    np.testing.assert_allclose(grid.log_factor(diagonal.shapes), exact, atol=1e-9)
    between = grid.log_factor(kernel_grid((90,), (45,)))
    assert np.isfinite(between).all()
    assert (between != 0).all()


def test_forms_never_measured_are_left_to_the_roofline(model):
    rows = kernel_grid((32,), (32,))
    rows.values[:, 8] = 4  # stride 2 x 2
    assert model.correction.log_factor(rows).tolist() == [0.0] * len(rows)


def test_kernels_measured_twice_count_with_their_median():
    rows = kernel_grid((16,), (16,))
    three = measured_kernels(
        concatenated([rows, rows, rows]), factor=lambda s: np.repeat([1.0, 2, 9], 3)
    )
    fitted = fit(measured_kernels(), SETTINGS)
    grid = Corrected(fitted, GridCorrection(three, fitted))
    np.testing.assert_allclose(grid(measured_kernels(rows)), three.latency_ms[3:6], rtol=1e-9)


def test_text_gives_back_the_kernels(measured, model):
    again = kernels_from_text(kernels_to_text(measured))
    np.testing.assert_allclose(again.shapes.values, measured.shapes.values)
    np.testing.assert_allclose(again.latency_ms, measured.latency_ms, rtol=1e-9)
    assert again.shapes.family.tolist() == measured.shapes.family.tolist()
    mixed = joined([network_samples(measured_networks(2)), measured])
    assert kernels_to_text(mixed) == kernels_to_text(measured)
    grid = GridCorrection(again, model.fitted)
    rows = kernel_grid((20,), (24,))
    np.testing.assert_allclose(grid.log_factor(rows), model.correction.log_factor(rows), atol=1e-8)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "family,cin\nconv,1\n"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="expected the columns family"):
        kernels_from_text(text)
