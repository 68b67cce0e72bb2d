import dataclasses
import datetime
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency.calibrate import Target, calibrate
from autoprune.latency.fitting import Settings
from autoprune.latency.heldout import fit_kind, held_out, held_out_error
from autoprune.latency.layers import read_layers
from autoprune.latency.measurements import (
    Names,
    Selected,
    Selection,
    read_names,
    read_tables,
    select,
)
from autoprune.latency.profile import load_profile, save_profile
from autoprune.latency.samples import Samples, joined, network_samples
from autoprune.testing.measurements import (
    ORIGIN,
    SLOW,
    kernel_grid,
    measured_kernels,
    measured_networks,
)

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("AUTOPRUNE_SHARED", ROOT.parent / "shared"))
TABLE = SHARED / "device_data" / "net_jetson_small.csv"
CHAINS = SHARED / "device_data" / "net_jetson_small_layers.json"
needs_table = pytest.mark.skipif(not TABLE.exists(), reason=f"{TABLE} is not there")

TARGET = Target(
    name="board", device="a board", runtime="tensorrt", runtime_version="1", precision="fp16",
    alignment=8,
)  # fmt: skip


def calibrated(measured, target=TARGET):
    samples = measured if isinstance(measured, Samples) else network_samples(measured)
    return calibrate(Selected(samples, {"x": "why"}), target, date=datetime.date(2026, 1, 1))


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_made_up_device_is_recovered(overlap):
    measurements = measured_networks(overlap=overlap)
    profile = calibrated(measurements, dataclasses.replace(TARGET, overlap=overlap))
    assert profile.provenance.held_out.mape < 0.03
    assert profile.provenance.held_out.spearman > 0.98
    conv = profile.predictor.families.conv
    assert conv.peak_gmacs_per_s == pytest.approx(400, rel=0.15)
    assert conv.overhead_ms == pytest.approx(0.02, rel=0.7)
    assert profile.predictor.families.linear.bandwidth_gb_s == pytest.approx(20, rel=0.3)
    by_repository = {s.repository: s.constant_ms for s in profile.provenance.sources}
    assert by_repository["c/d"] - by_repository["a/b"] == pytest.approx(0.8, rel=0.1)


def test_eight_noisy_networks_are_enough():
    # Seeds are fixed, so this cannot fail by chance.
    profile = calibrated(measured_networks(8, noise=0.05, seed=3))
    assert profile.provenance.sample_count == 8
    assert profile.provenance.held_out.mape < 0.25


def test_equal_networks_are_held_out_together():
    measurements = measured_networks(10, noise=0.1)
    twin = dataclasses.replace(measurements[0], network="twin", origin=SLOW)
    corrupt = [*measurements, dataclasses.replace(twin, latency_ms=1e4)]
    honest, other = (
        calibrated(m).provenance.predictions[0].predicted_ms
        for m in ([*measurements, twin], corrupt)
    )
    assert honest == other


def test_profile_says_where_it_comes_from():
    measurements = measured_networks(12, noise=0.05)
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
    assert provenance.macs_held_out.mape > provenance.held_out.mape
    assert provenance.roofline_held_out is None
    assert "leave-one-network-out" in provenance.split
    assert profile.predictor.constant_ms == min(s.constant_ms for s in provenance.sources)


def test_whole_families_are_held_out_where_there_are_several():
    measurements = measured_networks(12, noise=0.05)

    def named(letters):
        return [
            dataclasses.replace(m, network=f"{letters[i % len(letters)]}net_{i}")
            for i, m in enumerate(measurements)
        ]

    assert calibrated(named("a")).provenance.unseen_family is None
    several = calibrated(named("abc")).provenance
    assert several.unseen_family != several.held_out


def test_unmeasured_families_get_average_parameters():
    families = calibrated(measured_networks()).predictor.families
    assert families.gconv == families.matmul
    assert families.gconv.overhead_ms == pytest.approx(0.02, rel=0.5)


def test_kernels_make_a_profile_of_kernels():
    samples = measured_kernels(kernel_grid((8, 12, 20, 32, 72, 128), (12, 16, 64)))
    profile = calibrated(samples, dataclasses.replace(TARGET, alignment=None))
    provenance = profile.provenance
    assert (provenance.samples, provenance.sample_count) == ("kernels", 54)
    assert provenance.kernel_count == 54
    assert provenance.measured_families == ("conv",)
    assert provenance.predictions == ()
    assert provenance.held_out.mape < 0.02
    assert "leave-one-output-channel-count-out; 6 numbers" in provenance.split
    assert profile.predictor.families.conv.alignment == 8
    assert profile.predictor.constant_ms == 0


def test_kernels_and_networks_are_judged_by_networks():
    mixed = joined([network_samples(measured_networks(6)), measured_kernels()])
    provenance = calibrated(mixed).provenance
    assert (provenance.samples, provenance.sample_count) == ("networks", 6)
    assert provenance.kernel_count == len(mixed) - 6
    assert "kernels were never held out" in provenance.split
    assert len(provenance.predictions) == 6


def wobble(shapes):
    return np.where(shapes["outputs"] > 100, 1.4, 0.8)


@pytest.mark.parametrize("kind", ["learned", "table"])
def test_other_kinds_beat_the_roofline_where_there_is_a_residual(kind, tmp_path):
    rows = kernel_grid((8, 16, 32, 48, 64, 128), (8, 16, 32, 64, 96, 128))
    samples = measured_kernels(rows, factor=wobble)
    profile = calibrated(samples, dataclasses.replace(TARGET, kind=kind, processors=4))
    provenance = profile.provenance
    assert profile.predictor.kind == kind
    assert provenance.held_out.mape < 0.7 * provenance.roofline_held_out.mape
    path = tmp_path / "board.yaml"
    save_profile(profile, path)
    assert load_profile(path) == profile


def test_auto_says_that_every_fold_chose():
    rows = kernel_grid((8, 16, 32, 64, 128), (16, 32, 128))
    samples = measured_kernels(rows, factor=lambda s: s["outputs"] ** -0.3)
    profile = calibrated(samples, dataclasses.replace(TARGET, kind="auto"))
    assert profile.predictor.kind == "table"
    assert "every fold chose the kind" in profile.provenance.split
    assert profile.provenance.split.startswith("5 folds of whole")


def nameless(origin):
    samples = network_samples(measured_networks(8))
    return dataclasses.replace(samples, origins=(ORIGIN, origin))


def test_origin_without_commit_or_licence_is_refused():
    bare = dataclasses.replace(SLOW, commit="", licence="")
    with pytest.raises(ProfileError) as caught:
        calibrated(nameless(bare))
    message = str(caught.value)
    assert "no licence for c/d" in message
    assert "no commit for c/d" in message


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"precision": "fp61"}, UnknownNameError, "did you mean 'fp16'"),
        ({"kind": "tabel"}, UnknownNameError, "did you mean 'table'"),
        ({"capabilities": ("teleport",)}, ProfileError, r"capabilities\.0"),
        ({"kind": "table"}, ProfileError, "there are none in the tables"),
    ],
)
def test_wrong_targets_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        calibrated(measured_networks(8), dataclasses.replace(TARGET, **changes))


def test_kernels_of_one_width_leave_nothing_to_hold_out():
    samples = measured_kernels(kernel_grid((32,), (8, 16, 24, 32, 40)))
    with pytest.raises(ProfileError, match="nothing can be held out"):
        calibrated(samples)


def nano(layers, names):
    selection = Selection(
        ("jetson_nano",), {"tensorrt": "tensorrt", "tensorrt_JetPack4.6": "tensorrt"}, "fp16"
    )
    return select(read_tables([TABLE]), layers, selection, names=names)


@needs_table
def test_jetson_nano_from_plain_chains_is_predicted_within_ten_percent():
    samples = nano(read_layers([CHAINS]), Names()).samples
    assert len(samples) == 18
    settings = Settings(alignment=2, bytes_per_element=2)
    predicted = held_out(samples, samples.groups, lambda part: fit_kind("roofline", part, settings))
    assert held_out_error(predicted, samples.latency_ms).mape < 0.10


@needs_table
@pytest.mark.slow
def test_shipped_jetson_nano_is_what_calibration_gives(tmp_path):
    # In a process of its own: type checks while tests run make tracing several times slower.
    script = ROOT / "benchmarks" / "make_jetson_layers.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, cwd=ROOT, timeout=600)
    layers, names = tmp_path / "layers.json", tmp_path / "names.json"
    selected = nano(read_layers([layers]), read_names(names))
    shipped = load_profile("jetson_nano")
    target = dataclasses.replace(TARGET, alignment=shipped.alignment)
    again = calibrate(selected, target, date=datetime.date(2026, 1, 1))
    assert again.provenance.held_out.mape == pytest.approx(
        shipped.provenance.held_out.mape, rel=0.02
    )
    assert again.provenance.left_out == shipped.provenance.left_out
    assert again.predictor.families.conv.peak_gmacs_per_s == pytest.approx(
        shipped.predictor.families.conv.peak_gmacs_per_s, rel=0.02
    )
