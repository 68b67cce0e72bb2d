import pytest
import torch

import autoprune
import autoprune.export.package
from autoprune.errors import RunError
from autoprune.run.finished import FinishedRun
from autoprune.run.pick import picked_trials
from autoprune.testing.networks import tiny
from autoprune.testing.tasks import TeacherTask


@pytest.fixture
def network():
    return tiny("residual")


@pytest.fixture
def task(network):
    return TeacherTask(network.model, shape=(2, 3, 8, 8))


@pytest.fixture
def result(network, task, board, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
    )
    return autoprune.search(
        network.model,
        task,
        device=board,
        trials=4,
        sampler="random",
        executor="inline",
        precision="fp32",
        output=tmp_path / "run",
    )


def results(folder):
    """Every file of a run."""
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}


def test_networks_of_a_finished_search_are_those_of_the_search(result, task):
    before = results(result.directory)

    finished = FinishedRun.open(
        result.directory, model=tiny("residual").model, task=task, say=print
    )

    (best,) = picked_trials(finished.results)
    assert best == result.best.trial
    for point in result.points:
        made = finished.network(point.trial)
        assert sum(p.numel() for p in made.parameters()) == point.params
        assert task.evaluate(made, "search").accuracy == point.accuracy
        metrics = finished.metrics(point.trial)
        assert (metrics.accuracy, metrics.macs) == (point.accuracy, point.macs)
        assert metrics.test_accuracy == point.test_accuracy
    stored = autoprune.load(result.directory / "network", tiny("residual").model)
    images = task.example_inputs()[0]
    with torch.no_grad():
        torch.testing.assert_close(finished.network(best)(images), stored(images))
    kept = autoprune.export.package.read_package(result.directory / "network").pruning_plan
    assert finished.plan(best) == kept
    assert results(result.directory) == before


def test_a_search_that_has_not_ended_is_none(result, task):
    (result.directory / "report.json").unlink()
    with pytest.raises(RunError, match="finish the search with"):
        FinishedRun.open(result.directory, model=tiny("residual").model, task=task, say=print)
