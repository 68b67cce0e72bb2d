from __future__ import annotations

from importlib.util import find_spec

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autoprune.errors import ExportError
from autoprune.export.onnx import export_onnx
from autoprune.network.trace import trace
from autoprune.network.vision import build_torchvision
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import prune

METADATA = {"autoprune.source": "digits", "autoprune.profile": "nano"}


def run(path, **feed):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feed.items()})


@pytest.fixture(scope="module")
def exported(build, images, tmp_path_factory):
    """A pruned network, its file and the check."""
    folder = tmp_path_factory.mktemp("onnx")
    network = trace(build(), (images,))
    kept = {group.name: tuple(range(0, group.size, 2)) for group in network.groups}
    model = prune(network, PruningPlan(kept)).train()
    check = export_onnx(model, (images,), folder / "network.onnx", metadata=METADATA)
    return model, folder / "network.onnx", check


def test_the_check_reports_what_was_compared(exported):
    model, path, check = exported

    assert check.max_abs_difference < 1e-4
    assert check.batch_sizes == (2, 1, 3)
    assert (check.input_names, check.output_names) == (("input",), ("output",))
    assert check.size_bytes == path.stat().st_size
    assert [entry.name for entry in path.parent.iterdir()] == ["network.onnx"]
    assert model.training  # the user's network is left as it was


def test_any_batch_size_runs(exported):
    model, path, _ = exported
    images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model.eval()(images)
    model.train()

    (got,) = run(path, input=images)
    assert got == pytest.approx(wanted.numpy(), abs=1e-5)


def test_the_file_carries_its_metadata_and_no_trace_of_this_machine(exported):
    _, path, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    assert session.get_modelmeta().custom_metadata_map == METADATA
    content = path.read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_batchnorm_is_folded_into_the_convolution(exported):
    _, path, _ = exported
    operators = [node.op_type for node in onnx.load(path).graph.node]

    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 3


class TwoInputs(nn.Module):
    """Token numbers and a scale, two outputs; the scale has no batch."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens, scale):
        features = self.embedding(tokens) * scale
        return self.head(features), features.mean(1)


def test_several_inputs_and_outputs_are_numbered(tmp_path):
    tokens, scale = torch.randint(0, 11, (2, 5)), torch.rand(5, 1)
    check = export_onnx(TwoInputs(), (tokens, scale), tmp_path / "net.onnx", metadata={})

    assert check.input_names == ("input_0", "input_1")
    assert check.output_names == ("output_0", "output_1")
    logits, features = run(tmp_path / "net.onnx", input_0=tokens.repeat(3, 1), input_1=scale)
    assert (logits.shape, features.shape) == ((6, 5, 3), (6, 4))


class FixedBatch(nn.Module):
    """Its code takes the batch size for a constant."""

    def forward(self, x):
        return x + torch.arange(2.0).reshape(2, 1)


def test_a_network_with_a_fixed_batch_size_is_exported_only_on_demand(tmp_path):
    with pytest.raises(ExportError, match="dynamic_batch=False exports one batch size"):
        export_onnx(FixedBatch(), (torch.randn(2, 3),), tmp_path / "net.onnx", metadata={})
    assert list(tmp_path.iterdir()) == []

    check = export_onnx(
        FixedBatch(), (torch.randn(2, 3),), tmp_path / "net.onnx", metadata={}, dynamic_batch=False
    )
    assert check.batch_sizes == (2,)


class Noisy(nn.Module):
    """Never gives the same output twice."""

    def forward(self, x):
        return x + torch.rand_like(x)


def test_an_export_that_differs_is_not_written(tmp_path):
    with pytest.raises(ExportError, match=r"differs from PyTorch by .* more than 0\.0001"):
        export_onnx(Noisy(), (torch.randn(2, 3),), tmp_path / "net.onnx", metadata={})
    assert list(tmp_path.iterdir()) == []


class Unreal(nn.Module):
    """Its outputs are not numbers."""

    def forward(self, x):
        return torch.log(-x.abs() - 1)


def test_outputs_that_are_not_numbers_are_no_agreement(tmp_path):
    with pytest.raises(ExportError, match="differs from PyTorch by nan"):
        export_onnx(Unreal(), (torch.randn(2, 3),), tmp_path / "net.onnx", metadata={})


class Undecided(nn.Module):
    """Its code depends on the values, which no graph can hold."""

    def forward(self, x):
        return x + 1 if bool(x.sum() > 0) else x - 1


def test_a_network_that_has_no_graph_is_reported(tmp_path):
    with pytest.raises(ExportError, match="Undecided cannot be exported to ONNX"):
        export_onnx(Undecided(), (torch.randn(2, 3),), tmp_path / "net.onnx", metadata={})


@pytest.mark.parametrize("inputs", [(), (3,), (torch.tensor(1.0),)])
def test_inputs_need_a_batch_dimension(tmp_path, inputs):
    with pytest.raises(ExportError, match="tensors with a batch dimension"):
        export_onnx(Noisy(), inputs, tmp_path / "net.onnx", metadata={})


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("torchvision"), reason="torchvision is not installed")
def test_resnet18_of_torchvision(tmp_path):
    check = export_onnx(
        build_torchvision("resnet18"),
        (torch.randn(1, 3, 64, 64),),
        tmp_path / "resnet18.onnx",
        metadata=METADATA,
    )

    assert check.max_abs_difference < 1e-4
    assert check.batch_sizes == (1, 2)
