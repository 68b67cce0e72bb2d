import dataclasses
import datetime
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from autoprune.latency.tables import (
    Measurement,
    Names,
    Origin,
    Selection,
    read_names,
    read_tables,
    select,
)

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency import calibrate as module
from autoprune.latency.calibrate import (
    Settings,
    Target,
    calibrate,
    fit,
    held_out_error,
    held_out_predictions,
    predict,
)
from autoprune.latency.kernels import FAMILIES, from_layers
from autoprune.latency.layers import read_layers
from autoprune.latency.profile import load_profile
from autoprune.latency.roofline import Roofline, RooflinePredictor

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("AUTOPRUNE_SHARED", ROOT.parent / "shared"))
TABLE = SHARED / "device_data" / "net_jetson_small.csv"
CHAINS = SHARED / "device_data" / "net_jetson_small_layers.json"
needs_table = pytest.mark.skipif(not TABLE.exists(), reason=f"{TABLE} is not there")

ORIGIN = Origin("a/b", "t.md", "tensorrt", "tensorrt")
SLOW = Origin("c/d", "t.md", "tensorrt", "tensorrt")
NAMES = Names({}, {"a/b": "1", "c/d": "2"}, {"a/b": "MIT", "c/d": "MIT"})
TRUTH = {family: Roofline(0.02, 400.0, 15.0) for family in FAMILIES} | {
    "dwconv": Roofline(0.03, 200.0, 10.0),
    "linear": Roofline(0.02, 300.0, 20.0),
}
CONSTANTS = {ORIGIN: 0.2, SLOW: 1.0}
SETTINGS = Settings(alignment=8, bytes_per_element=2)
TARGET = Target(
    name="board", device="a board", runtime="tensorrt", runtime_version="1", precision="fp16",
    alignment=8,
)  # fmt: skip


def network(rng):
    """A random network of separable and plain blocks."""
    rows, channels, size = [["conv", 3, 32, 3, 2, 1, 224, 224, 112, 112]], 32, 112
    for _ in range(rng.integers(4, 16)):
        out = int(8 * rng.integers(4, 65))
        if size > 7 and rng.random() < 0.4:
            size //= 2
        if rng.random() < 0.4:
            rows.append(["dwconv", channels, channels, 3, 1, channels, size, size, size, size])
        kernel = 3 if rng.random() < 0.5 else 1
        rows.append(["conv", channels, out, kernel, 1, 1, size, size, size, size])
        channels = out
    rows.append(["globalpool", channels, channels, size, 1, 1, size, size, 1, 1])
    for features in (1000, 4096)[: rng.integers(1, 3)]:
        rows.append(["fc", channels, features, 1, 1, 1, 1, 1, 1, 1])
        channels = features
    return rows


def predictor(table, rooflines, constant, overlap="none"):
    return RooflinePredictor(
        table, rooflines, alignment=8, bytes_per_element=2, overlap=overlap, constant_ms=constant
    )


NOTHING = np.zeros((1, 0), int), np.zeros((1, 0), bool)


def measured(count=20, *, overlap="none", noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    measurements = []
    for i in range(count):
        table = from_layers(network(rng), "tensorrt")
        origin = SLOW if i % 4 == 3 else ORIGIN
        latency = predictor(table, TRUTH, CONSTANTS[origin], overlap).predict(*NOTHING)[0]
        latency *= np.exp(noise * rng.standard_normal())
        measurements.append(Measurement(f"net{i}", origin, float(latency), table))
    return measurements


def calibrated(measurements, target=TARGET, names=NAMES):
    date = datetime.date(2026, 1, 1)
    return calibrate(measurements, target, names=names, left_out={"x": "why"}, date=date)


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_made_up_device_is_recovered(overlap):
    measurements = measured(overlap=overlap)
    profile = calibrated(measurements, dataclasses.replace(TARGET, overlap=overlap))
    assert profile.provenance.held_out.mape < 0.03
    assert profile.provenance.held_out.spearman > 0.98
    conv = profile.predictor.families.conv
    assert conv.peak_gmacs_per_s == pytest.approx(400, rel=0.15)
    assert conv.overhead_ms == pytest.approx(0.02, rel=0.7)
    assert profile.predictor.families.linear.bandwidth_gb_s == pytest.approx(20, rel=0.3)
    by_repository = {s.repository: s.constant_ms for s in profile.provenance.sources}
    assert by_repository["c/d"] - by_repository["a/b"] == pytest.approx(0.8, rel=0.1)


def test_fit_extrapolates_to_narrower_networks():
    fitted = fit(measured(), SETTINGS)
    rng = np.random.default_rng(9)
    for _ in range(10):
        rows = network(rng)
        narrow = [[r[0], *(c if c <= 3 else c // 2 for c in r[1:3]), *r[3:]] for r in rows]
        for row in narrow:
            row[5] = row[1] if row[0] == "dwconv" else 1
        table = from_layers(narrow, "tensorrt")
        truth, guess = (
            predictor(table, rooflines, constant).predict(*NOTHING)[0]
            for rooflines, constant in (
                (TRUTH, CONSTANTS[ORIGIN]),
                (fitted.rooflines, fitted.constants_ms[ORIGIN]),
            )
        )
        assert guess == pytest.approx(truth, rel=0.08)


def test_eight_noisy_networks_are_enough():
    # Seeds are fixed, so this cannot fail by chance.
    profile = calibrated(measured(8, noise=0.05, seed=3))
    assert profile.provenance.sample_count == 8
    assert profile.provenance.held_out.mape < 0.25


def test_one_outlier_hardly_matters():
    measurements = measured()
    broken = [dataclasses.replace(measurements[0], latency_ms=50.0), *measurements[1:]]
    clean, robust = (
        predict(measurements, fit(m, SETTINGS), SETTINGS) for m in (measurements, broken)
    )
    np.testing.assert_allclose(robust[1:], clean[1:], rtol=0.08)


def test_fit_predicts_as_the_predictor_does():
    measurements = measured()
    fitted = fit(measurements, SETTINGS)
    for measurement, value in zip(
        measurements, predict(measurements, fitted, SETTINGS), strict=True
    ):
        constant = fitted.constants_ms[measurement.origin]
        exact = predictor(measurement.kernels, fitted.rooflines, constant).predict(*NOTHING)[0]
        assert value == pytest.approx(exact, rel=1e-5)


def test_fit_is_the_same_every_time():
    measurements = measured(noise=0.1)
    assert fit(measurements, SETTINGS) == fit(measurements, SETTINGS)


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_derivatives_are_exact(overlap):
    settings = dataclasses.replace(SETTINGS, overlap=overlap)
    problem = module._Problem(measured(6), settings)
    rng = np.random.default_rng(0)
    point = np.concatenate([np.log([0.01, 300, 12]), 0.1 * rng.standard_normal(problem.size - 3)])
    _, jacobian = problem.latency(point)
    step = 1e-6
    for i in range(problem.size):
        shift = step * np.eye(problem.size)[i]
        up, down = (problem.latency(point + sign * shift)[0] for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, i], (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


def test_held_out_network_does_not_influence_its_prediction():
    measurements = measured(10, noise=0.1)
    groups = [m.kernels.signature for m in measurements]
    corrupt = [dataclasses.replace(measurements[0], latency_ms=1e4), *measurements[1:]]
    honest = held_out_predictions(measurements, SETTINGS, groups)
    other = held_out_predictions(corrupt, SETTINGS, groups)
    assert honest[0] == other[0]
    assert (honest[1:] != other[1:]).all()


def test_equal_networks_are_held_out_together():
    measurements = measured(10, noise=0.1)
    twin = dataclasses.replace(measurements[0], network="twin", origin=SLOW)
    groups = [m.kernels.signature for m in (*measurements, twin)]
    honest = held_out_predictions([*measurements, twin], SETTINGS, groups)
    corrupt = [*measurements, dataclasses.replace(twin, latency_ms=1e4)]
    assert held_out_predictions(corrupt, SETTINGS, groups)[0] == honest[0]


def test_profile_says_where_it_comes_from():
    measurements = measured(12, noise=0.05)
    twin = dataclasses.replace(measurements[0], network="twin")
    profile = calibrated([*measurements, twin])
    provenance = profile.provenance
    assert provenance.sample_count == 12
    assert len(provenance.predictions) == 13
    assert [(s.repository, s.commit, s.licence, s.measurements) for s in provenance.sources] == [
        ("a/b", "1", "MIT", 10),
        ("c/d", "2", "MIT", 3),
    ]
    assert provenance.left_out == {"x": "why"}
    assert set(provenance.measured_families) == {"conv", "dwconv", "linear", "pool"}
    assert provenance.unseen_family is not None
    assert profile.predictor.constant_ms == min(s.constant_ms for s in provenance.sources)


def test_unmeasured_families_get_average_parameters():
    families = calibrated(measured()).predictor.families
    assert families.gconv == families.matmul
    assert families.gconv.overhead_ms == pytest.approx(0.02, rel=0.5)


def test_error_is_the_mean_of_relative_errors():
    error = held_out_error(np.array([1.04, 1.82, 4.44]), np.array([1.0, 2.0, 4.0]))
    assert error.mape == pytest.approx(0.08, abs=1e-4)
    assert (error.within_5, error.within_10, error.within_20) == (0.3333, 0.6667, 1.0)
    assert error.spearman == 1.0


def test_all_faults_of_a_calibration_are_listed():
    with pytest.raises(ProfileError) as caught:
        calibrated(measured(7), names=Names({}, {"a/b": "1"}, {}))
    message = str(caught.value)
    assert "7 different networks" in message
    assert "no licence for a/b" in message
    assert "no commit for c/d" in message


def test_wrong_targets_are_refused():
    measurements = measured(8)
    with pytest.raises(UnknownNameError, match="did you mean 'fp16'"):
        calibrated(measurements, dataclasses.replace(TARGET, precision="fp61"))
    with pytest.raises(ProfileError, match=r"capabilities\.0"):
        calibrated(measurements, dataclasses.replace(TARGET, capabilities=("teleport",)))


def nano(layers, names):
    selection = Selection(
        ("jetson_nano",), {"tensorrt": "tensorrt", "tensorrt_JetPack4.6": "tensorrt"}, "fp16"
    )
    return select(read_tables([TABLE]), layers, selection, names=names)


@needs_table
def test_jetson_nano_from_plain_chains_is_predicted_within_ten_percent():
    measurements, _ = nano(read_layers([CHAINS]), Names())
    groups = [m.kernels.signature for m in measurements]
    assert len(measurements) == 18
    predicted = held_out_predictions(
        measurements, Settings(alignment=2, bytes_per_element=2), groups
    )
    error = held_out_error(predicted, np.array([m.latency_ms for m in measurements]))
    assert error.mape < 0.10


@needs_table
@pytest.mark.slow
def test_shipped_jetson_nano_is_what_calibration_gives(tmp_path):
    # In a process of its own: type checks while tests run make tracing several times slower.
    script = ROOT / "benchmarks" / "make_jetson_layers.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, cwd=ROOT, timeout=600)
    layers, names = tmp_path / "layers.json", tmp_path / "names.json"
    known = read_names(names)
    measurements, left_out = nano(read_layers([layers]), known)
    shipped = load_profile("jetson_nano")
    target = dataclasses.replace(TARGET, alignment=shipped.alignment)
    again = calibrate(
        measurements, target, names=known, left_out=left_out, date=datetime.date(2026, 1, 1)
    )
    assert again.provenance.held_out.mape == pytest.approx(
        shipped.provenance.held_out.mape, rel=0.02
    )
    assert again.provenance.left_out == shipped.provenance.left_out
    assert again.predictor.families.conv.peak_gmacs_per_s == pytest.approx(
        shipped.predictor.families.conv.peak_gmacs_per_s, rel=0.02
    )
