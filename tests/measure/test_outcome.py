import datetime
import itertools
import json

import pytest
import torch
from torch import nn

from autoprune.errors import MeasureError
from autoprune.latency.calibrate import Target
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import load_profile, save_profile
from autoprune.measure.board import Rounds, append_rows, read_rows
from autoprune.measure.measuring import Folder, measure
from autoprune.measure.outcome import outcome
from autoprune.measure.subjects import Sampler, Source
from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace
from autoprune.testing.backends import CALL_MS, FormulaBackend, formula_ms

WHO = {"device": "d", "runtime": "r_1", "precision": "fp32", "threads": 1, "clock": "wall"}
TARGET = Target(
    name="d", device="a device", runtime="eager", runtime_version="1", precision="fp32", alignment=1
)
TODAY = datetime.date(2026, 1, 1)


def plain(*channels):
    """Return a chain of 3x3 convolutions."""
    pairs = itertools.pairwise((3, *channels))
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairs]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10)
    )


@pytest.fixture(scope="module")
def sources():
    image = torch.zeros(1, 3, 24, 24)
    return [
        Source("plain", plain(48, 64, 96).eval(), image),
        Source("resnet8", SmallResNet(8, widths=(24, 32, 48)).eval(), image),
    ]


@pytest.fixture(scope="module")
def measured(sources, tmp_path_factory):
    """A folder of twelve networks for the fit and six for the check, without noise to speak of."""
    folder = Folder(tmp_path_factory.mktemp("measured"), WHO)
    laps = itertools.islice(Sampler(sources, alignment=1, kernels=4).laps(), 9)
    backend = FormulaBackend(noise=0.001)
    backend.rounds = Rounds(warm_up=1, count=3, most=4)
    measure(backend, laps, folder, seconds=1e9, listener=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def found(measured):
    return outcome(measured, TARGET, date=TODAY, failed={"odd": "cannot run"})


def test_fit_recovers_the_formula(found, sources):
    # Another architecture than any that was fitted or checked.
    model, image = plain(40, 56, 56, 80).eval(), torch.zeros(1, 3, 24, 24)
    ops = trace(model, image).ops
    predicted = predictor_for(ops, found.profile).predict(ops.full_widths, ops.full_keep)[0]
    assert predicted == pytest.approx(CALL_MS + formula_ms(model, (image,)), rel=0.1)


def test_error_is_that_on_networks_that_were_not_fitted(found, measured):
    provenance = found.profile.provenance
    roles = {row["network"]: row["role"] for row in read_rows(measured.networks)}
    checked = [name for name, role in roles.items() if role == "check"]
    assert [line.network for line in provenance.predictions] == checked
    assert len(checked) == 6
    errors = [abs(p.predicted_ms / p.measured_ms - 1) for p in provenance.predictions]
    assert provenance.held_out.mape == pytest.approx(sum(errors) / 6, rel=1e-3)
    assert provenance.held_out.mape < 0.1
    assert provenance.macs_held_out.mape > provenance.held_out.mape
    assert "6 networks that nothing was fitted on" in provenance.split
    assert "fitted on 12 others" in provenance.split


def test_profile_says_where_it_is_from(found, tmp_path):
    (remark,) = found.remarks
    assert remark.startswith("Fitted on ")
    assert "networks alone" in remark
    assert "both" in remark
    assert found.profile.provenance.left_out == {"odd": "cannot run"}
    save_profile(found.profile, tmp_path / "d.yaml")
    again = load_profile(tmp_path / "d.yaml")
    assert again.provenance.sources[0].repository == "own measurements"
    assert again.provenance.date == TODAY


def test_wrong_rows_of_the_check_do_not_bend_the_fit(measured, found, tmp_path):
    """What is checked takes no part in the fit."""
    folder = Folder(tmp_path, WHO)
    folder.layers.write_text(measured.layers.read_text())
    folder.kernels.write_text(measured.kernels.read_text())
    rows = read_rows(measured.networks)
    for row in rows:
        if row["role"] == "check":
            row["latency_ms"] = str(3 * float(row["latency_ms"]))
    append_rows(folder.networks, list(rows[0]), rows)
    other = outcome(folder, TARGET, date=TODAY, failed={}).profile
    assert other.predictor == found.profile.predictor
    assert other.provenance.held_out.mape == pytest.approx(2 / 3, rel=0.05)


def test_too_few_networks_say_how_to_get_more(sources, tmp_path):
    folder = Folder(tmp_path, WHO)
    laps = itertools.islice(Sampler(sources, alignment=1, kernels=0).laps(), 2)
    measure(FormulaBackend(), laps, folder, seconds=1e9, listener=lambda _: None)
    with pytest.raises(MeasureError, match=r"2 different networks for the fit and 2 .*minutes"):
        outcome(folder, TARGET, date=TODAY, failed={})


def test_networks_that_are_the_same_count_once(measured, tmp_path):
    folder = Folder(tmp_path, WHO)
    layers = json.loads(measured.layers.read_text())
    rows = read_rows(measured.networks)
    fitted = [row["network"] for row in rows if row["role"] == "fit"]
    same = {name: layers[fitted[0]] if name in fitted[:6] else layers[name] for name in layers}
    folder.layers.write_text(json.dumps(same))
    folder.networks.write_text(measured.networks.read_text())
    with pytest.raises(MeasureError, match="7 different networks for the fit and 6 for the check"):
        outcome(folder, TARGET, date=TODAY, failed={})
