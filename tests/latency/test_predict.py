import datetime

import numpy as np
import pytest

from autoprune.errors import ProfileError
from autoprune.latency.calibrate import Target, calibrate
from autoprune.latency.kernels import FAMILIES
from autoprune.latency.layers import ops_from_rows
from autoprune.latency.measurements import Selected
from autoprune.latency.predict import correction_of, predictor_for
from autoprune.latency.profile import Attachment, load_profile, save_profile
from autoprune.latency.roofline import Predictor
from autoprune.latency.samples import joined, network_samples
from autoprune.testing.measurements import kernel_grid, measured_kernels, measured_networks
from autoprune.testing.profiles import made_up_profile

NOTHING = np.zeros((1, 0), int), np.zeros((1, 0), bool)
CONVS = [["conv", 16, 16, 3, 1, 1, 14, 14, 14, 14]] * 3
HEAD = ["fc", 16, 8, 1, 1, 1, 1, 1, 1, 1]
MIXED = [*CONVS, ["gconv", 16, 16, 3, 1, 2, 14, 14, 14, 14], HEAD]


def wobble(shapes):
    return np.where(shapes["outputs"] > 100, 1.4, 0.8) * shapes["cin"] ** 0.1


@pytest.fixture(scope="module", params=["roofline", "learned", "table"])
def profile(request, tmp_path_factory):
    """A profile of kernels that was written and read again."""
    rows = kernel_grid((8, 16, 32, 48, 64, 128), (8, 16, 32, 64, 96, 128))
    target = Target(
        name="board", device="a board", runtime="tensorrt", runtime_version="1", precision="fp16",
        alignment=8, kind=request.param, processors=4,
    )  # fmt: skip
    selected = Selected(measured_kernels(rows, factor=wobble), {})
    made = calibrate(selected, target, date=datetime.date(2026, 1, 1))
    path = tmp_path_factory.mktemp(request.param) / "board.yaml"
    save_profile(made, path)
    return load_profile(path)


def test_every_kind_predicts_and_breaks_down(profile):
    predictor = predictor_for(ops_from_rows(CONVS), profile)
    assert isinstance(predictor, Predictor)
    total = predictor.predict(*NOTHING)
    lines = predictor.breakdown(*(part[0] for part in NOTHING))
    assert sum(ms for *_, ms in lines) == pytest.approx(total[0], rel=1e-6)
    one = measured_kernels(kernel_grid((16,), (16,)), factor=wobble).latency_ms[1]
    worst = {"roofline": 0.5, "learned": 0.25, "table": 1e-3}[profile.predictor.kind]
    assert total[0] == pytest.approx(3 * one, rel=worst)


def test_profile_of_kernels_refuses_what_it_has_not_seen(profile):
    with pytest.raises(ProfileError) as caught:
        predictor_for(ops_from_rows(MIXED, network="net"), profile)
    message = str(caught.value)
    assert "fitted on conv kernels alone" in message
    assert "gconv (net.3), linear (net.4)" in message
    assert "autoprune devices" in message


def test_what_computes_little_is_taken_from_other_families(profile):
    pool = ["globalpool", 16, 16, 14, 1, 1, 14, 14, 1, 1]
    predictor = predictor_for(ops_from_rows([*CONVS, pool, HEAD]), profile)
    without = predictor_for(ops_from_rows([*CONVS, pool]), profile).predict(*NOTHING)
    assert predictor.predict(*NOTHING) > without
    assert any("has pool, linear kernels" in note for note in predictor.notes)


def test_profile_of_kernels_says_so(profile):
    small = [*CONVS, ["globalpool", 16, 16, 14, 1, 1, 14, 14, 1, 1]]
    notes = predictor_for(ops_from_rows(small), profile).notes
    assert any("fitted on single kernels" in note for note in notes)
    assert any("pool kernels" in note for note in notes)


def test_kernels_outside_the_hull_are_named(profile):
    wide = [["conv", 16, 4096, 3, 1, 1, 14, 14, 14, 14]]
    outside = [
        note for note in predictor_for(ops_from_rows(CONVS + wide), profile).notes if "lie" in note
    ]
    assert bool(outside) == (profile.predictor.kind == "learned")
    if outside:
        assert outside[0].startswith("1 of 4 kernels lie outside what was measured")


def test_kernels_with_networks_assume_what_is_missing():
    mixed = joined([network_samples(measured_networks(8)), measured_kernels()])
    target = Target(
        name="board", device="a board", runtime="tensorrt", runtime_version="1", precision="fp16"
    )
    profile = calibrate(Selected(mixed, {}), target, date=datetime.date(2026, 1, 1))
    (note,) = predictor_for(ops_from_rows(MIXED), profile).notes
    assert "gconv kernels" in note
    assert "assumed from the other families" in note


def test_notes_name_what_is_extrapolated():
    assert predictor_for(ops_from_rows(MIXED), made_up_profile()).notes == ()
    provenance = made_up_profile().provenance.model_dump()
    provenance["measured_families"] = [f for f in FAMILIES if f != "gconv"]
    other = made_up_profile(provenance=provenance)
    batch_note, family_note = predictor_for(ops_from_rows(MIXED, batch=64), other).notes
    assert "batch 64 is extrapolated" in batch_note
    assert "gconv" in family_note


def test_roofline_has_no_correction():
    assert correction_of(made_up_profile()) is None


def test_foreign_table_beside_a_profile_is_refused():
    predictor = made_up_profile().predictor.model_dump(by_alias=True) | {"kind": "table"}
    kernels = Attachment.of("made_up.kernels.csv", "a,b\n1,2\n")
    odd = made_up_profile(predictor=predictor | {"kernels": kernels})
    with pytest.raises(ProfileError, match=r"made_up\.kernels\.csv: expected the columns"):
        predictor_for(ops_from_rows(MIXED), odd)
