from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import autoprune
from autoprune.cli.main import main
from autoprune.errors import MeasureError, RunError
from autoprune.latency.profile import load_profile, save_profile
from autoprune.measure.backend import BACKENDS
from autoprune.measure.board import NETWORK_COLUMNS, Rounds, append_rows, device_name
from autoprune.run.finished import FinishedRun
from autoprune.run.verify import BAND, UNPRUNED, recalibrate, setup_here, verify
from autoprune.testing.backends import FormulaBackend
from autoprune.testing.profiles import made_up_profile
from autoprune.testing.tasks import TeacherTask

QUIET = {"say": lambda sentence: None}
FACTORY = """
import torch
from torch import nn
from autoprune.testing.tasks import TeacherTask

def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5))

def task():
    return TeacherTask(net(), shape=(1, 3, 16, 16))
"""


class Quick(FormulaBackend):
    """A runtime four times as fast as the made-up board, and leaner."""

    rounds = Rounds(warm_up=1, count=3, most=3)

    def __init__(self, **options):
        super().__init__(noise=0.001, **options)


@pytest.fixture
def quick(monkeypatch):
    BACKENDS["torch"]  # loads the others, so that one more does not stand alone
    monkeypatch.setitem(BACKENDS._entries, "quick", Quick)


def made_here(**changes):
    setup = {"machine": device_name(), "backend": "quick", "threads": 1, "clock": "wall"}
    return made_up_profile(runtime="eager", precision="fp32", setup={**setup, **changes})


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A search on a profile that says it is of this machine."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "own.py").write_text(FACTORY)
    save_profile(made_here(), folder / "here.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
        )
        yield autoprune.search(
            f"{folder / 'own.py'}:net",
            f"{folder / 'own.py'}:task",
            device=str(folder / "here.yaml"),
            output=folder / "run",
            trials=12,
            sampler="random",
            executor="inline",
            realise="slice",
            precision="fp32",
        )


@pytest.fixture
def finished(result):
    return FinishedRun.open(result.directory, **QUIET)


def test_front_is_measured_and_compared(result, finished, quick):
    found = verify(finished, **QUIET)
    assert [row.network for row in found.rows] == [
        UNPRUNED,
        *(f"trial {p.trial}" for p in result.points if p.trial != found.rows[0].trial),
    ]
    table = pd.read_csv(found.table).set_index("network")["latency_ms"]
    for row in found.rows:
        record = finished.records[row.trial].evaluation
        assert row.predicted_ms == record.latency_ms
        assert row.measured_ms == table[row.network]
        assert row.error == pytest.approx(row.predicted_ms / row.measured_ms - 1)
        assert row.outside == (abs(row.error) > BAND * 0.1)
    # The runtime is faster than the board in everything.
    assert found.rows[0].outside
    assert found.speed_up(found.rows[-1]) == pytest.approx(
        table[UNPRUNED] / table[found.rows[-1].network]
    )
    content = json.loads((result.directory / "verify" / "verify.json").read_text())
    assert content["networks"][0]["measured_ms"] == found.rows[0].measured_ms
    assert (content["format"], content["version"]) == ("autoprune-verify", 1)


def test_recalibrated_run_is_a_run_whose_predictions_fit(result, finished, quick, tmp_path):
    found = verify(finished, **QUIET)
    before = (result.directory / "trials.parquet").read_bytes()
    evaluations = []
    patch = pytest.MonkeyPatch()
    patch.setattr(TeacherTask, "evaluate", lambda *given: evaluations.append(given))
    try:
        new = recalibrate(finished, found, output=tmp_path / "new", **QUIET)
    finally:
        patch.undo()
    assert evaluations == []
    assert (result.directory / "trials.parquet").read_bytes() == before

    profile = load_profile(tmp_path / "new" / "profile.yaml")
    assert profile.provenance.held_out.mape < found.mean_error / 4
    again = FinishedRun.open(tmp_path / "new", **QUIET)
    assert set(again.records) == set(finished.records)
    for row in found.rows:
        assert again.records[row.trial].evaluation.latency_ms == pytest.approx(
            row.measured_ms, rel=0.2
        )
    for number, record in finished.records.items():
        other = again.records[number].evaluation
        assert other.latency_ms != record.evaluation.latency_ms
        assert (other.loss, other.accuracy) == (record.evaluation.loss, record.evaluation.accuracy)
    # The front by brute force over the new latencies.
    complete = [r for r in again.records.values() if r.complete and r.duplicate_of is None]
    front = {
        r.number
        for r in complete
        if not any(
            (o.evaluation.accuracy >= r.evaluation.accuracy)
            and (o.evaluation.latency_ms <= r.evaluation.latency_ms)
            and (o.evaluation.accuracy, o.evaluation.latency_ms)
            != (r.evaluation.accuracy, r.evaluation.latency_ms)
            for o in complete
        )
    }
    assert {point.trial for point in new.points} <= front
    volumes = again.results.hypervolume
    assert len(volumes) == len(again.records)
    assert list(np.maximum.accumulate(volumes)) == list(volumes)
    with pytest.raises(RunError, match="is not empty"):
        recalibrate(finished, found, output=tmp_path / "new", **QUIET)


def who(**changes):
    row = {"device": "board", "runtime": "quick_1", "precision": "fp32", "batch": 1, "threads": 1}
    return {**row, "clock": "wall", "role": "check", **changes}


def test_a_table_of_a_board_takes_the_place_of_measuring(result, finished, tmp_path, capsys):
    names = [UNPRUNED, *(f"trial {p.trial}" for p in result.points)]
    rows = [who(network=name, latency_ms=2.0 + i) for i, name in enumerate(dict.fromkeys(names))]
    table = tmp_path / "networks.csv"
    append_rows(table, NETWORK_COLUMNS, [*rows[:-1], who(network="other#1", latency_ms=9)])
    found = verify(finished, measurements=table, **QUIET)
    assert [row.measured_ms for row in found.rows] == [row["latency_ms"] for row in rows[:-1]]
    assert found.unmeasured == (rows[-1]["network"],)
    assert found.device == "board, quick_1"
    arguments = ["verify", str(result.directory), "--measurements", str(table), "--recalibrate"]
    assert main([*arguments, "-o", str(tmp_path / "again")]) == 0
    out = capsys.readouterr().out
    assert "outside" in out
    assert "recalibrated: error" in out
    assert load_profile(tmp_path / "again" / "profile.yaml").name == "made_up_recalibrated"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet#1"}, "has no network of this run; rows are called unpruned"),
        ({"precision": "fp16"}, "has fp16 at batch 1"),
        ({"batch": 4}, "has fp32 at batch 4"),
    ],
)
def test_tables_of_something_else_are_refused(finished, tmp_path, changes, message):
    rows = [who(**{"network": UNPRUNED, "latency_ms": 2.0, **changes})]
    append_rows(tmp_path / "t.csv", NETWORK_COLUMNS, rows)
    with pytest.raises(MeasureError, match=message):
        verify(finished, measurements=tmp_path / "t.csv", **QUIET)


def test_two_devices_in_a_table_are_refused(finished, tmp_path):
    rows = [who(network=UNPRUNED, latency_ms=2.0, device=d) for d in ("a", "b")]
    append_rows(tmp_path / "t.csv", NETWORK_COLUMNS, rows)
    with pytest.raises(MeasureError, match="leave one of each"):
        verify(finished, measurements=tmp_path / "t.csv", **QUIET)


def test_profiles_of_other_machines_are_refused(quick):
    assert setup_here(made_here()).backend == "quick"
    with pytest.raises(MeasureError, match="was not made by `autoprune profile`"):
        setup_here(made_up_profile())
    with pytest.raises(MeasureError, match="is of 'a board', this machine is"):
        setup_here(made_here(machine="a board"))
    assert setup_here(made_up_profile(runtime="eager"), runtime="quick").machine == device_name()
    with pytest.raises(MeasureError, match="cannot be compared"):
        setup_here(made_up_profile(), runtime="quick")


def test_a_search_is_verified_only_on_its_own_device(result, quick, board, tmp_path, capsys):
    folder = result.directory.parent
    own = [f"{folder / 'own.py'}:net", "--data", f"{folder / 'own.py'}:task"]
    rest = ["--executor", "inline", "--sampler", "random", "--trials", "2", "--verify"]
    given = ["search", *own, *rest, "--realise", "slice"]
    assert main([*given, "--device", board, "--output", str(tmp_path / "a")]) == 2
    assert "was not made by `autoprune profile`" in capsys.readouterr().err
    assert not list((tmp_path / "a").glob("*"))


def test_a_search_on_its_own_device_is_measured_at_its_end(
    result, quick, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
    )
    folder, run = result.directory.parent, tmp_path / "run"
    own = [f"{folder / 'own.py'}:net", "--data", f"{folder / 'own.py'}:task"]
    rest = ["--executor", "inline", "--sampler", "random", "--trials", "3", "--realise", "slice"]
    device = ["--device", str(folder / "here.yaml"), "--output", str(run)]
    assert main(["search", *own, *rest, *device, "--verify"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((run / "verify" / "verify.json").read_text())
    measured = pd.read_csv(run / "verify" / "networks.csv").set_index("network")["latency_ms"]
    front = {f"trial {trial}" for trial in pd.read_csv(run / "front.csv")["trial"]}
    assert front <= {*measured.index, f"trial {content['networks'][0]['trial']}"}
    assert UNPRUNED in measured.index
    for row in content["networks"]:
        assert row["measured_ms"] == measured[row["network"]]
        assert f"{row['measured_ms']:.4g}" in printed


def test_kit_holds_the_front_under_the_names_of_tables(result, tmp_path, capsys):
    assert main(["verify", str(result.directory), "--kit", str(tmp_path / "kit")]) == 0
    items = json.loads((tmp_path / "kit" / "kit.json").read_text())["items"]
    assert next(item["name"] for item in items) == UNPRUNED
    assert {f"trial {p.trial}" for p in result.points} <= {UNPRUNED, *(i["name"] for i in items)}
    assert main(["verify", str(result.directory), "--kit", "x", "--recalibrate"]) == 2
    assert "--kit only writes a kit" in capsys.readouterr().err


def test_modules_given_as_objects_are_verified(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
    )
    task = TeacherTask(model, shape=(1, 3, 12, 12))
    save_profile(made_here(), tmp_path / "here.yaml")
    result = autoprune.search(
        model,
        task,
        device=str(tmp_path / "here.yaml"),
        output=tmp_path / "run",
        trials=3,
        sampler="random",
        executor="inline",
        realise="slice",
    )
    opened = FinishedRun.open(result.directory, model=model, task=task, **QUIET)
    assert verify(opened, **QUIET).rows[0].network == UNPRUNED
