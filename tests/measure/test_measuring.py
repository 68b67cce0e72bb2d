import itertools

import pytest
import torch
from torch import nn

from autoprune.errors import MeasureError
from autoprune.latency.layers import read_layers
from autoprune.latency.measurements import read_tables
from autoprune.measure import measuring
from autoprune.measure.board import read_rows
from autoprune.measure.measuring import Folder, measure
from autoprune.measure.subjects import Sampler, Source
from autoprune.network.resnet import SmallResNet
from autoprune.testing.backends import CALL_MS, FormulaBackend, formula_ms

WHO = {"device": "d", "runtime": "r_1", "precision": "fp32", "threads": 1, "clock": "wall"}


@pytest.fixture(scope="module")
def source():
    return Source("net", SmallResNet(8).eval(), torch.zeros(1, 3, 16, 16))


def laps(source, count, **more):
    return list(itertools.islice(Sampler([source], alignment=4, **more).laps(), count))


def run(backend, draws, folder, seconds=1e9):
    heard = []
    measure(
        backend, draws, folder, seconds=seconds, listener=heard.append, now=lambda: backend.clock_s
    )
    return heard


def test_medians_follow_the_formula_and_kernels_are_without_the_call(source, tmp_path):
    folder = Folder(tmp_path, WHO)
    draws = laps(source, 2, kernels=4)
    run(FormulaBackend(), draws, folder)
    subjects = {draw.name: draw.build() for lap in draws for draw in lap}
    assert read_tables([folder.networks, folder.kernels]).faults == ()
    for row in read_rows(folder.networks):
        subject = subjects[row["network"]]
        exact = CALL_MS + formula_ms(subject.module, subject.inputs)
        # The median of five medians with 0.5 % of noise is never off by 3 %.
        assert float(row["latency_ms"]) == pytest.approx(exact, rel=0.03)
    kernels = read_rows(folder.kernels)
    assert len(kernels) == 8
    exact = [formula_ms(s.module, s.inputs) for s in subjects.values() if s.kind == "kernel"]
    for row, milliseconds in zip(kernels, exact, strict=True):
        # The call is taken off twice-noisy numbers and is up to thrice the kernel.
        assert float(row["latency_ms"]) == pytest.approx(milliseconds, rel=0.15)


def test_a_second_run_goes_on_where_the_first_stopped(source, tmp_path):
    draws = laps(source, 3)
    first, second = FormulaBackend(), FormulaBackend()
    run(first, draws[:2], Folder(tmp_path, WHO))
    before = Folder(tmp_path, WHO).networks.read_text()
    run(second, draws, Folder(tmp_path, WHO))
    after = Folder(tmp_path, WHO).networks.read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 1 + 3
    # The third lap alone, the reference and the idle call.
    assert second.built == len(draws[2]) + 2
    assert len(read_layers([tmp_path / "layers.json"])) == 3
    assert len(Folder(tmp_path, WHO).noises()) == 2


def test_rows_cut_off_by_a_crash_are_measured_again(source, tmp_path):
    draws = laps(source, 2, kernels=0)
    run(FormulaBackend(), draws, Folder(tmp_path, WHO))
    table = tmp_path / "networks.csv"
    whole = table.read_text()
    table.write_text(whole[:-8])
    run(FormulaBackend(), draws, Folder(tmp_path, WHO))
    assert [row["network"] for row in read_rows(table)] == ["net#0", "net#1"]


def test_time_budget_is_kept(source, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_SUBJECTS", 4)
    # Building alone takes a second per subject; the laps never end.
    backend = FormulaBackend(build_s=1.0)
    endless = Sampler([source], alignment=4, kernels=1).laps()
    heard = run(backend, endless, Folder(tmp_path, WHO), seconds=15.0)
    assert backend.clock_s <= 15.0
    assert heard[-1].networks + heard[-1].kernels >= 2 * 4
    assert heard[-1].seconds == backend.clock_s


def test_what_is_under_way_when_time_is_up_is_finished(source, tmp_path):
    heard = run(FormulaBackend(build_s=1.0), laps(source, 2), Folder(tmp_path, WHO), seconds=5.0)
    assert heard[-1].networks == 2


def test_what_cannot_run_is_left_out_with_the_reason(source, tmp_path):
    backend = FormulaBackend(refuses=(nn.Linear,))
    folder = Folder(tmp_path, WHO)
    draws = laps(source, 4, kernels=6)
    standing = run(backend, draws, folder)[-1]
    assert standing.failed
    assert all(name.startswith("linear") for name in standing.failed)
    assert {"cannot run Linear"} == set(standing.failed.values())
    assert all(row["op"] != "linear" for row in read_rows(folder.kernels))


def test_nothing_that_runs_is_an_error(source, tmp_path):
    backend = FormulaBackend(refuses=(SmallResNet,))
    with pytest.raises(MeasureError, match=r"nothing could be measured; net#0: cannot run SmallR"):
        run(backend, laps(source, 1, kernels=0), Folder(tmp_path, WHO))


def test_measurements_of_another_way_are_not_mixed(source, tmp_path):
    run(FormulaBackend(), laps(source, 1), Folder(tmp_path, WHO))
    with pytest.raises(MeasureError, match=r"'threads': '1'.*'threads': 2.*another output"):
        Folder(tmp_path, {**WHO, "threads": 2})


def test_noise_is_the_spread_of_the_reference(source, tmp_path):
    folder = Folder(tmp_path, WHO)
    # Half a per cent of noise; the reference is the slower of two medians.
    assert 0 < run(FormulaBackend(), laps(source, 1), folder)[-1].noise < 0.05
    folder.keep_noise([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    first, second = folder.noises()
    assert first["rounds"] >= 5
    assert second == {"reference_spread": pytest.approx(1 / 1.5), "rounds": 6}
