import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model

from autoprune.errors import MeasureError
from autoprune.latency.layers import ops_from_rows, read_layers
from autoprune.latency.measurements import read_tables
from autoprune.measure.board import read_rows
from autoprune.measure.kit import is_kit, write_kit
from autoprune.measure.subjects import Sampler, Source
from autoprune.network.resnet import SmallResNet


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    source = Source("resnet8", SmallResNet(8).eval(), torch.zeros(1, 3, 16, 16))
    folder = tmp_path_factory.mktemp("kit") / "kit"
    return write_kit(Sampler([source], alignment=4, kernels=2), folder, networks=3)


@pytest.fixture(scope="module")
def results(kit, tmp_path_factory):
    """What the script writes, run as on a board: in a process of its own, without autoprune."""
    output = tmp_path_factory.mktemp("results")
    command = [
        *(sys.executable, "-I", str(kit.folder / "run.py"), "--device", "my board"),
        *("--runtime", "onnxruntime", "--rounds", "1", "-o", str(output)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return output, command


def test_kit_holds_what_it_says(kit):
    content = json.loads((kit.folder / "kit.json").read_text())
    kinds = [item["kind"] for item in content["items"]]
    assert (kit.networks, kit.kernels) == (kinds.count("network"), kinds.count("kernel")) == (3, 6)
    assert all((kit.folder / item["file"]).is_file() for item in content["items"])
    assert set(read_layers([kit.folder / "layers.json"])) == {f"resnet8#{i}" for i in range(3)}
    readme = (kit.folder / "README.txt").read_text()
    for command in (
        "python3 run.py --device",
        "scp -r",
        "autoprune calibrate results/networks.csv",
    ):
        assert command in readme
    assert is_kit(kit.folder)
    assert not is_kit(kit.folder / "onnx")


def test_weights_are_shared_and_the_files_are_small(kit):
    files = sorted((kit.folder / "onnx").glob("*.onnx"))
    content = json.loads((kit.folder / "kit.json").read_text())
    network = next(item for item in content["items"] if item["name"] == "resnet8#0")
    rows = read_layers([kit.folder / "layers.json"])["resnet8#0"]
    model = onnx.load(str(kit.folder / network["file"]), load_external_data=False)
    external = [t for t in model.graph.initializer if t.external_data]
    assert external
    assert max(path.stat().st_size for path in files) < 60_000
    load_external_data_for_model(model, str(kit.folder / "onnx"))
    shapes = [tuple(t.dims) for t in model.graph.initializer if len(t.dims) == 4]
    assert shapes == [(row[2], row[1], 3, 3) for row in rows if row[0] == "conv"]
    values = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t in external))
    fan_in = np.prod(values.shape[1:])
    # The stretch's scale is off by a factor of at most sqrt(2), the sample's by far less.
    assert 0.6 < values.std() * np.sqrt(fan_in / 2) < 1.6


def test_activations_neither_fade_nor_explode(kit):
    session = onnxruntime.InferenceSession(
        str(kit.folder / "onnx" / "000.onnx"), providers=["CPUExecutionProvider"]
    )
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    (out,) = session.run(None, {session.get_inputs()[0].name: image})
    assert 1e-6 < np.abs(out).max() < 1e6


def test_script_writes_tables_that_calibrate_reads(kit, results):
    output, _ = results
    tables = read_tables([output / "networks.csv", output / "kernels.csv"])
    assert tables.faults == ()
    assert list(tables.networks["network"]) == [f"resnet8#{i}" for i in range(3)]
    assert set(tables.networks["device"]) == {"my board"}
    version = onnxruntime.__version__
    assert set(tables.networks["runtime"]) == {f"onnxruntime_{version}"}
    assert set(tables.networks["precision"]) == {"fp32"}
    assert set(tables.networks["threads"]) == {1}
    # A kernel that the call hides has no row.
    assert len(tables.kernels) <= 6
    layers = read_layers([output / "layers.json"])
    assert all(ops_from_rows(layers[name]).macs()[0] > 0 for name in tables.networks["network"])
    (noise,) = json.loads((output / "noise.json").read_text())
    assert noise["rounds"] >= 1


def test_second_run_measures_nothing_twice(results):
    output, command = results
    before = (output / "networks.csv").read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (output / "networks.csv").read_text() == before
    other = subprocess.run(
        [*command, "--clock", "wall"], capture_output=True, text=True, check=False, timeout=300
    )
    assert other.returncode == 0, other.stderr
    assert len(read_rows(output / "networks.csv")) == 6


def test_what_cannot_run_is_told_and_left_out(kit, tmp_path):
    content = json.loads((kit.folder / "kit.json").read_text())
    for item in content["items"]:
        item["file"] = str(kit.folder / item["file"])
    content["items"][0]["file"] = "absent.onnx"
    content |= {key: str(kit.folder / content[key]) for key in ("reference", "idle")}
    (tmp_path / "kit.json").write_text(json.dumps(content))
    (tmp_path / "layers.json").write_text("{}")
    script = str(kit.folder / "run.py")
    command = [sys.executable, script, "--kit", str(tmp_path), "--rounds", "1"]
    command += ["--runtime", "onnxruntime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0
    assert "not measured: resnet8#0" in done.stderr
    assert len(read_rows(tmp_path / "results" / "networks.csv")) == 2


def test_script_refuses_what_it_cannot_do(kit):
    script = str(kit.folder / "run.py")
    for options, message in (
        (["--precision", "fp16", "--runtime", "onnxruntime"], "need --runtime tensorrt"),
        (["--threads", "0"], "positive"),
        (["--runtime", "tensorrt"], "trtexec is not on the PATH"),
    ):
        done = subprocess.run(
            [sys.executable, script, *options],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": ""},
            timeout=60,
        )
        assert done.returncode == 2
        assert message in done.stderr


def test_folder_with_something_in_it_is_left_alone(kit):
    with pytest.raises(MeasureError, match="is not empty"):
        write_kit(Sampler([], alignment=1), kit.folder, networks=1)
