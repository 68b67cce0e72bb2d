"""Every export format of small networks of many kinds, loaded back by its own runtime."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autoprune.errors import ExportError, UnknownNameError
from autoprune.export.format import FORMATS, Exportable
from autoprune.export.package import PackageMetrics, load, save_package
from autoprune.network.inputs import batch_size, normalised
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified
from autoprune.testing.architectures import DiffusionUNet, RecurrentClassifier, UNet
from autoprune.testing.networks import tiny
from autoprune.testing.plans import half_plan

METADATA = {"autoprune.model": "net", "autoprune.plan": "{}", "autoprune.profile": "nano"}
METRICS = PackageMetrics(
    accuracy=None, loss=None, latency_ms=1.0, latency_error=0.1, profile="nano", macs=1, params=1
)


def exportable(model, inputs, **changes):
    """Return a network with half of every group gone, ready to be exported."""
    network = verified(trace(model.eval(), inputs))
    plan = half_plan(network)
    pruned = Surgeon(network).cut(plan).eval()

    def save(folder):
        save_package(folder, model=pruned, network=network, plan=plan, source=None, metrics=METRICS)

    given = {
        "model": pruned,
        "inputs": normalised(inputs),
        "compared_on": "noise",
        "metadata": METADATA,
        "save": save,
        "reload": lambda folder: load(folder, model),
        "batch": batch_size(network.inputs),
    }
    return Exportable(**{**given, **changes})


def images(side=16):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def named(spec):
    return lambda: (ModelSource.parse(spec).build(), images(32))


def of_tiny(name):
    def make():
        network = tiny(name)
        return network.model, network.batches(2)[0][0]

    return make


NETWORKS = {
    "residual": of_tiny("residual"),
    "attention": of_tiny("attention"),
    "language": of_tiny("language"),
    "lstm": lambda: (RecurrentClassifier(nn.LSTM, layers=1), torch.arange(10).reshape(2, 5)),
    "unet": lambda: (UNet(), images()),
    "diffusion": lambda: (DiffusionUNet(), (images(), torch.tensor([3, 70]))),
    "resnet18": named("torchvision:resnet18(num_classes=10)"),
    "densenet": named("timm:densenet121(growth_rate=8, block_config=(1, 2), num_classes=10)"),
    "vit": named("timm:vit_tiny_patch16_224(img_size=32, patch_size=8, depth=2, num_classes=10)"),
    "convnext": named(
        "timm:convnext_atto(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), num_classes=10)"
    ),
}


# torch's exporter looks at recurrent layers' weights in ways that it warns of itself.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_format_round_trips(name, tmp_path):
    torch.manual_seed(0)
    subject = exportable(*NETWORKS[name]())
    for kind in FORMATS.names():
        writer = FORMATS[kind]
        if writer.missing() is not None:
            continue
        written = writer().write(subject, tmp_path)
        assert written.format == kind
        assert all((tmp_path / file).stat().st_size > 0 for file in written.files)
        if kind == "tensorrt-script":
            assert written.runtime is None
            assert written.max_abs_difference is None
        else:
            assert written.max_abs_difference < 1e-4
            assert len(written.batch_sizes) == 3


# --- one by one, on a network that takes no time -------------------------------------------------


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return exportable(*of_tiny("residual")())


@dataclasses.dataclass
class Broken:
    """Returns a network that computes something else than was saved."""

    subject: Exportable

    def __call__(self, folder):
        network = self.subject.reload(folder)
        with torch.no_grad():
            next(network.parameters()).mul_(1.5)
        return network


def test_unknown_formats_are_told_from_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'safetensors'"):
        FORMATS["safetensor"]


def test_a_package_that_loads_as_another_network_is_refused(subject, tmp_path):
    wrong = dataclasses.replace(subject, reload=Broken(subject))
    with pytest.raises(ExportError, match="the package as loaded differs from PyTorch"):
        FORMATS["safetensors"]().write(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_openvino_carries_metadata_and_runs_at_any_batch(subject, tmp_path):
    openvino = pytest.importorskip("autoprune.export.formats.openvino")
    if FORMATS["openvino"].missing() is not None:
        pytest.skip("openvino is missing")
    FORMATS["openvino"]().write(subject, tmp_path)
    module = openvino.import_openvino()
    compiled = module.Core().compile_model(tmp_path / "network.xml", "CPU", {})
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = subject.model(x).numpy()
    assert np.allclose(compiled([x.numpy()])[0], wanted, atol=0.05)  # in bf16 where there is that
    read = module.Core().read_model(tmp_path / "network.xml")
    assert read.get_rt_info(["autoprune", "profile"]).astype(str) == "nano"
    assert {path.name for path in tmp_path.iterdir()} == {"network.xml", "network.bin"}


def test_openvino_that_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert FORMATS["openvino"].missing() == "pip install openvino"


def test_tensorrt_scripts_fit_the_network(subject, tmp_path):
    FORMATS["tensorrt-script"]().write(dataclasses.replace(subject, batch=4), tmp_path)
    commands = (tmp_path / "tensorrt.sh").read_text()
    shapes = "--minShapes=input:1x3x8x8 --optShapes=input:4x3x8x8 --maxShapes=input:4x3x8x8"
    assert f'SHAPES="{shapes}"' in commands
    assert "has not run it" in commands
    assert "@" not in commands
    samples = np.load(tmp_path / "samples.npz")
    with torch.no_grad():
        wanted = subject.model(torch.from_numpy(samples["input:input"])).numpy()
    assert np.array_equal(samples["output:output"], wanted)
    assert onnx.load(tmp_path / "network.onnx").graph.input[0].name == "input"


class Noted:
    """Stands for any object of TensorRT: notes what it is asked for, and builds nothing."""

    EXPLICIT_BATCH, WARNING, FP16, INT8 = 0, 0, "fp16", "int8"

    def __init__(self, asked):
        self.asked = asked

    def __call__(self, *given):
        return self

    def create_network(self, flags):
        self.asked.append(flags)
        return self

    def parse(self, content):
        return bool(onnx.load_from_string(content).graph.node)

    def set_flag(self, flag):
        self.asked.append(flag)

    def set_shape(self, name, *shapes):
        self.asked.append((name, *map(tuple, shapes)))

    def build_serialized_network(self, network, config):
        return b"engine"

    def __getattr__(self, name):
        return self


def test_builder_script_asks_tensorrt_for_what_the_network_needs(subject, tmp_path, monkeypatch):
    FORMATS["tensorrt-script"]().write(subject, tmp_path)
    asked = []
    tensorrt = Noted(asked)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "torch", None)  # nothing to compare with
    monkeypatch.setattr(sys, "argv", ["tensorrt_build.py", "--fp16"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "tensorrt_build.py"), run_name="__main__")
    shapes = [(n, 3, 8, 8) for n in (1, 2, 2)]
    assert asked == [1, "fp16", ("input", *shapes)]
    assert (tmp_path / "network.engine").read_bytes() == b"engine"


def test_metadata_names_model_plan_and_profile(subject, tmp_path):
    FORMATS["onnx"]().write(subject, tmp_path)
    properties = onnx.load(tmp_path / "network.onnx").metadata_props
    assert {p.key: p.value for p in properties} == METADATA
    assert json.loads(METADATA["autoprune.plan"]) == {}
