from __future__ import annotations

import dataclasses
import json
import shutil

import onnxruntime
import pytest
import torch
from torch import nn

import autoprune
from autoprune.cli.main import main
from autoprune.errors import ExportError, UnknownNameError
from autoprune.export.format import FORMATS
from autoprune.export.package import load
from autoprune.run.exporting import EXPORT_FILE, export, subjects
from autoprune.testing.tasks import SAMPLES, TeacherTask

FACTORY = """
import torch
from torch import nn
from autoprune.testing.tasks import TeacherTask

def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))

def task():
    return TeacherTask(net(), shape=(2, 3, 8, 8))
"""
QUIET = {"say": lambda sentence: None}


@pytest.fixture(scope="module")
def run(board, tmp_path_factory):
    """A small finished search, its model and data named by a file beside it."""
    project = tmp_path_factory.mktemp("project")
    (project / "own.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
        )
        result = autoprune.search(
            f"{project / 'own.py'}:net",
            f"{project / 'own.py'}:task",
            device=board,
            output=project / "run",
            trials=3,
            sampler="random",
            executor="inline",
            realise="slice",
        )
    return result


def test_a_run_is_exported_and_says_how_it_compared(run):
    (subject,) = subjects(run.directory, **QUIET)
    content = export(subject, ["onnx", "safetensors"], int8=True, **QUIET)
    folder = run.directory / "exported" / str(run.best.trial)
    assert json.loads((folder / EXPORT_FILE).read_text()) == content
    assert set(content["exports"]) == {"onnx", "safetensors", "int8"}
    assert content["network"]["accuracy"] == run.best.accuracy
    assert content["compared_on"] == "8 training samples of teacher"
    for entry in content["exports"].values():
        assert {file["size_bytes"] for file in entry["files"]} == {
            (folder / file["name"]).stat().st_size for file in entry["files"]
        }
    # The loaded package, ONNX Runtime and the entry agree, each computed here once more.
    network = load(folder, trust_source=True)
    task = TeacherTask(network, shape=(2, 3, 8, 8))
    images = task.images[SAMPLES : 2 * SAMPLES]
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    with torch.no_grad():
        wanted = network(images).numpy()
    assert abs(session.run(None, {"input": images.numpy()})[0] - wanted).max() < 1e-4
    int8 = content["exports"]["int8"]
    assert int8["reference_accuracy"] == pytest.approx(run.best.accuracy)
    assert int8["calibration_samples"] == SAMPLES
    assert int8["max_abs_difference"] > content["exports"]["onnx"]["max_abs_difference"]


def test_all_of_the_front_goes_into_folders_of_its_own(run, tmp_path, capsys):
    output = str(tmp_path)
    code = main(
        ["export", str(run.directory), "--pick", "all", "--format", "torch-export", "-o", output]
    )
    assert code == 0
    folders = {path.name for path in tmp_path.iterdir()}
    assert folders == {str(point.trial) for point in run.points}
    out = capsys.readouterr().out
    assert "torch-export: network.pt2" in out
    assert "compared with PyTorch on 8 training samples of teacher" in out


def test_a_folder_of_a_network_is_exported_with_the_data_of_its_run(run, tmp_path):
    (subject,) = subjects(run.directory / "network", trust_source=True, **QUIET)
    content = export(subject, ["safetensors"], folder=tmp_path / "a", int8=True, **QUIET)
    assert content["network"]["trial"] is None
    assert content["exports"]["int8"]["samples"] == SAMPLES
    # A copy elsewhere still finds the file that its architecture comes from.
    assert load(tmp_path / "a", trust_source=True)(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


def test_a_folder_without_data_is_compared_on_random_numbers(run, tmp_path):
    lone = tmp_path / "lone"
    shutil.copytree(run.directory / "network", lone)
    shutil.copy(run.directory.parent / "own.py", tmp_path / "own.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (subject,) = subjects(lone, trust_source=True, **QUIET)
        with pytest.raises(ExportError, match="name them with --data"):
            export(subject, ["onnx"], int8=True, **QUIET)
        content = export(subject, ["safetensors"], **QUIET)
    assert content["compared_on"] == "random numbers of the form of the recorded inputs"
    assert (lone / "exported" / EXPORT_FILE).is_file()


def test_what_fails_leaves_the_rest(run, tmp_path, monkeypatch):
    (subject,) = subjects(run.directory, **QUIET)
    export(subject, ["safetensors"], folder=tmp_path, **QUIET)

    def refuse(self, subject, folder):
        raise ExportError("no graph")

    monkeypatch.setattr(FORMATS["torch-export"], "write", refuse)
    with pytest.raises(ExportError, match="torch-export: no graph"):
        export(subject, ["torch-export", "onnx"], folder=tmp_path, **QUIET)
    content = json.loads((tmp_path / EXPORT_FILE).read_text())
    assert set(content["exports"]) == {"safetensors", "onnx"}


def test_one_batch_size_is_that_of_deployment(run, tmp_path):
    (subject,) = subjects(run.directory, dynamic_batch=False, **QUIET)
    content = export(subject, ["torch-export"], folder=tmp_path, **QUIET)
    assert content["exports"]["torch-export"]["batch_sizes"] == [2]


def test_a_fine_tuned_network_is_pointed_to(run):
    tuned = run.directory / "finetuned" / str(run.best.trial)
    shutil.copytree(run.directory / "network", tuned)
    said = []
    try:
        list(subjects(run.directory, say=said.append))
    finally:
        shutil.rmtree(tuned.parent)
    assert any(f"autoprune export {tuned}" in sentence for sentence in said)


def test_wrong_requests_are_refused(run, tmp_path, monkeypatch, capsys):
    with pytest.raises(ExportError, match="--pick takes one of a run directory"):
        list(subjects(run.directory / "network", pick="knee", **QUIET))
    with pytest.raises(ExportError, match="--data goes with the folder of a network"):
        list(subjects(run.directory, data="digits", **QUIET))
    (subject,) = subjects(run.directory, **QUIET)
    with pytest.raises(UnknownNameError, match="did you mean 'onnx'"):
        export(subject, ["onx"], **QUIET)
    monkeypatch.setattr(FORMATS["openvino"], "missing", lambda: "pip install openvino")
    assert main(["export", str(run.directory), "--format", "openvino"]) == 2
    assert "openvino: pip install openvino" in capsys.readouterr().err
    (tmp_path / EXPORT_FILE).write_text("{")
    with pytest.raises(ExportError, match="delete it and export again"):
        export(subject, ["onnx"], folder=tmp_path, **QUIET)


def test_a_model_given_as_an_object_is_given_again(board, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)
    )
    task = TeacherTask(model, shape=(2, 3, 8, 8))
    options = {"sampler": "random", "executor": "inline", "realise": "slice", "trials": 2}
    result = autoprune.search(model, task, device=board, output=tmp_path / "run", **options)
    (subject,) = subjects(result.directory, model=model, task=task, **QUIET)
    content = export(dataclasses.replace(subject), ["safetensors"], **QUIET)
    assert content["exports"]["safetensors"]["max_abs_difference"] < 1e-6
