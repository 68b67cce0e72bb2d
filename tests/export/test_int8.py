from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autoprune.errors import ExportError
from autoprune.export.format import Exportable
from autoprune.export.int8 import FILES, OnnxModule, export_int8, quantised
from autoprune.export.onnx import export_onnx, session_of
from autoprune.testing.tasks import SAMPLES, TeacherTask

METADATA = {"autoprune.model": "net", "autoprune.profile": "nano"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net()
    # Channels of very different size: one scale for all of them would lose the small ones.
    with torch.no_grad():
        model.conv.weight *= torch.logspace(-3, 0, 16)[:, None, None, None]
        model.norm.running_var.copy_(model.conv.weight.square().flatten(1).sum(1))
    return model.eval()


@pytest.fixture(scope="module")
def task(net):
    return TeacherTask(net, shape=(4, 3, 8, 8))


@pytest.fixture(scope="module")
def exported(net, task, tmp_path_factory):
    """A folder with the network as ONNX, and what is exported."""
    folder = tmp_path_factory.mktemp("int8")
    inputs = task.example_inputs()
    export_onnx(net, inputs, folder / "network.onnx", metadata=METADATA)
    subject = Exportable(
        model=net,
        inputs=inputs,
        compared_on="noise",
        metadata=METADATA,
        save=lambda folder: None,
        reload=lambda folder: net,
    )
    return folder, subject


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_quantised_network_is_scored_beside_the_original(exported, task, target):
    folder, subject = exported
    check = export_int8(
        subject, task, model=folder / "network.onnx", target=target, calibration_samples=32
    )
    assert check.file == FILES[target]
    assert 1e-5 < check.max_abs_difference < 0.3
    # The teacher is right about its own labels.
    assert check.reference_accuracy == 1.0
    assert 0.8 < check.accuracy <= 1.0
    assert check.calibration_samples == 32

    # Scored once more by hand, from the file.
    session = onnxruntime.InferenceSession(folder / check.file)
    images, labels = (values[SAMPLES : 2 * SAMPLES] for values in (task.images, task.labels))
    scores = session.run(None, {"input": images.numpy()})[0]
    assert check.accuracy == pytest.approx((scores.argmax(1) == labels.numpy()).mean())


def test_weights_have_a_scale_per_channel_and_metadata_stay(exported):
    folder, _ = exported
    content = (folder / "network.onnx").read_bytes()
    feeds = [{"input": np.ones((2, 3, 8, 8), np.float32)}]
    for target, zero in (("onnxruntime", np.uint8), ("tensorrt", np.int8)):
        model = onnx.load_from_string(quantised(content, feeds, target=target))
        values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
        scales = [v for name, v in values.items() if name.endswith("_scale")]
        assert any(scale.shape == (16,) for scale in scales)
        nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
        points = [values[node.input[2]] for node in nodes]
        assert {point.dtype for point in points} == {np.dtype(zero)}
        if target == "tensorrt":
            assert not any(point.any() for point in points)
        kept = {entry.key: entry.value for entry in model.metadata_props}
        assert kept == {**METADATA, "autoprune.int8": target}


def test_batch_normalisation_is_merged_before(exported):
    folder, _ = exported
    content = (folder / "network.onnx").read_bytes()
    feeds = [{"input": np.ones((1, 3, 8, 8), np.float32)}]
    kinds = {node.op_type for node in onnx.load_from_string(quantised(content, feeds)).graph.node}
    assert "BatchNormalization" not in kinds
    assert {"Conv", "QuantizeLinear", "DequantizeLinear"} <= kinds


def test_a_session_is_a_module(exported, net):
    folder, _ = exported
    module = OnnxModule(session_of((folder / "network.onnx").read_bytes()))
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(module(x), net(x), atol=1e-5)


def test_what_cannot_be_quantised_is_told(exported):
    folder, _ = exported
    content = (folder / "network.onnx").read_bytes()
    with pytest.raises(ExportError, match="ONNX Runtime cannot quantise this"):
        quantised(content, [{"input": np.ones((1, 4, 8, 8), np.float32)}])
