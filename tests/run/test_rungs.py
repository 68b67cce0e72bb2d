"""A search whose best networks are trained before they are reported."""

import pandas as pd
import pytest
import safetensors.torch
import torch

import autoprune
from autoprune.errors import SettingsError
from autoprune.execution.fidelity import TunedEvaluator
from autoprune.run.finished import FinishedRun
from autoprune.testing.networks import CLASSES, INPUT_SHAPE, tiny
from autoprune.testing.tasks import taught_images

TRIALS = 16


@pytest.fixture(scope="module", autouse=True)
def no_onnx_export():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
        )
        yield


def parts():
    model = tiny("residual").model
    return model, taught_images(model, classes=CLASSES, shape=INPUT_SHAPE)


def searched(board, folder, **options):
    model, task = parts()
    return autoprune.search(
        model, task, device=board, output=folder, trials=TRIALS, sampler="random",
        executor="inline", precision="fp32", realise="statistics", rungs="4,10", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(board, tmp_path_factory):
    return searched(board, tmp_path_factory.mktemp("whole") / "run")


def test_front_is_that_of_the_trained_networks_and_says_so(whole):
    trials = pd.read_parquet(whole.directory / "trials.parquet")
    assert trials["rung"].value_counts().to_dict() == {0.0: TRIALS + 1, 1.0: 4, 2.0: 1}
    assert trials[trials["on_front"]]["rung"].tolist() == [2.0]
    front = pd.read_csv(whole.directory / "front.csv")
    assert front["rung"].tolist() == [2]
    assert whole.best.trial == front["trial"].item()
    assert whole.best.extra == {"rung": 2.0}
    assert whole.dense.extra == {"rung": 0.0}
    lower = trials[trials["number"].isin(trials_below(whole, whole.best.trial))]
    assert len(lower) == 2
    assert len({*lower["params"], whole.best.params}) == 1  # one network, three times


def trials_below(result, number):
    """Return the trials that a trial was promoted from, by what the study says."""
    model, task = parts()
    records = FinishedRun.open(result.directory, model=model, task=task, say=print).records
    top = records[number].evaluation.candidate
    return [
        n
        for n, record in records.items()
        if record.evaluation.candidate.ratios == top.ratios
        and record.evaluation.candidate.dropped == top.dropped
        and record.rung < top.rung
    ]


def test_written_network_is_the_trained_one(whole):
    model, task = parts()
    best = whole.load_best(model)
    assert task.evaluate(best, "search").accuracy == pytest.approx(whole.best.accuracy)
    assert task.evaluate(best, "test").accuracy == pytest.approx(whole.best.test_accuracy)

    finished = FinishedRun.open(whole.directory, model=model, task=task, say=print)
    again = finished.network(whole.best.trial).state_dict()
    stored = safetensors.torch.load_file(whole.directory / "network" / "network.safetensors")
    assert all(torch.equal(stored[name], again[name]) for name in stored)
    assert stored
    (untrained,) = [
        n for n in trials_below(whole, whole.best.trial) if not finished.records[n].rung
    ]
    weights = finished.network(untrained).state_dict()
    assert not all(torch.equal(stored[name], weights[name]) for name in stored)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [TRIALS + 1, TRIALS + 3, TRIALS + 5])
def test_interrupted_search_ends_as_if_nothing_had_happened(
    whole, calls, board, tmp_path, monkeypatch
):
    left = [calls]
    evaluate = TunedEvaluator.__call__

    def interrupted(self, candidate, bar=()):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return evaluate(self, candidate, bar)

    with monkeypatch.context() as patch:
        patch.setattr(TunedEvaluator, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            searched(board, tmp_path / "run")
    model, task = parts()
    result = autoprune.resume(tmp_path / "run", model=model, task=task)

    assert (result.directory / "front.csv").read_text() == (
        whole.directory / "front.csv"
    ).read_text()
    columns = ["number", "loss", "accuracy", "rung", "status", "on_front"]
    mine, theirs = (
        pd.read_parquet(each.directory / "trials.parquet")[columns] for each in (result, whole)
    )
    pd.testing.assert_frame_equal(mine, theirs)


def test_rungs_that_cannot_be_are_refused_before_any_work(board, tmp_path):
    model, task = parts()
    wrong = {
        "40,x": r"rungs: .*expected steps such as 200 or epochs such as 1.5ep, got 'x'",
        "40,40": r"expected more training from rung to rung, got \[40, 40\] steps",
    }
    for rungs, message in wrong.items():
        with pytest.raises(SettingsError, match=message):
            autoprune.search(
                model, task, device=board, output=tmp_path / "run", rungs=rungs, trials=1
            )
    with pytest.raises(SettingsError, match="networks are promoted by one driver"):
        autoprune.search(
            model, task, device=board, output=tmp_path / "run", rungs="40",
            study_storage=f"sqlite:///{tmp_path}/study.db",
        )  # fmt: skip
    assert not (tmp_path / "run" / "study.journal").exists()
