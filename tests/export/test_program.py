from __future__ import annotations

import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from autoprune.errors import ExportError
from autoprune.export.program import METADATA_FILE, export_program, load_program
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import prune

METADATA = {"autoprune.source": "digits", "autoprune.profile": "nano"}


@pytest.fixture(scope="module")
def exported(build, images, tmp_path_factory):
    """A pruned network, its file and the check."""
    path = tmp_path_factory.mktemp("program") / "network.pt2"
    network = trace(build(), (images,))
    kept = {group.name: tuple(range(0, group.size, 2)) for group in network.groups}
    model = prune(network, PruningPlan(kept)).train()
    return model, path, export_program(model, images, path, metadata=METADATA)


def test_the_check_reports_what_was_compared(exported):
    model, path, check = exported

    assert check.max_abs_difference < 1e-4
    assert check.batch_sizes == (2, 1, 3)
    assert check.size_bytes == path.stat().st_size
    assert model.training  # the user's network is left as it was


def test_any_batch_size_runs(exported):
    model, path, _ = exported
    images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model.eval()(images)
    model.train()

    got = load_program(path).module()(images)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_the_file_holds_no_pickle_and_its_metadata(exported):
    _, path, _ = exported
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
        metadata = next(name for name in files if name.endswith(METADATA_FILE))
        assert json.loads(archive.read(metadata)) == METADATA
        for name in files:
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever is wrong with it
                pickle.Unpickler(io.BytesIO(archive.read(name))).load()  # noqa: S301 - must fail


class Pair(nn.Module):
    """Takes a dict, a number and a flag; returns a dict."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)

    def forward(self, batch, *, scale, negative):
        features = self.embedding(batch["tokens"]) * scale
        return {"features": -features if negative else features, "mean": features.mean(1)}


def test_inputs_of_any_form_are_exported(tmp_path):
    tokens = torch.randint(0, 11, (2, 5))
    inputs = {"batch": {"tokens": tokens}, "scale": 0.5, "negative": True}
    model = Pair()
    check = export_program(model, inputs, tmp_path / "net.pt2", metadata={})
    tokens = tokens.repeat(3, 1)
    got = load_program(tmp_path / "net.pt2").module()(
        batch={"tokens": tokens}, scale=0.5, negative=True
    )

    assert check.batch_sizes == (2, 1, 3)
    assert torch.equal(got["features"], -model.embedding(tokens) * 0.5)


class FixedBatch(nn.Module):
    """Its code takes the batch size for a constant."""

    def forward(self, x):
        return x + torch.arange(2.0).reshape(2, 1)


def test_a_network_with_a_fixed_batch_size_is_exported_only_on_demand(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(ExportError, match="dynamic_batch=False exports one batch size"):
        export_program(FixedBatch(), torch.randn(2, 3), path, metadata={})
    assert list(tmp_path.iterdir()) == []

    check = export_program(FixedBatch(), torch.randn(2, 3), path, metadata={}, dynamic_batch=False)
    assert check.batch_sizes == (2,)


class Noisy(nn.Module):
    """Never gives the same output twice."""

    def forward(self, x):
        return x + torch.rand_like(x)


def test_a_program_that_differs_is_not_written(tmp_path):
    with pytest.raises(ExportError, match=r"differs from PyTorch by .* more than 0\.0001"):
        export_program(Noisy(), torch.randn(2, 3), tmp_path / "net.pt2", metadata={})
    assert list(tmp_path.iterdir()) == []


class Undecided(nn.Module):
    """Its code depends on the values, which no graph can hold."""

    def forward(self, x):
        return x + 1 if bool(x.sum() > 0) else x - 1


def test_a_network_that_has_no_graph_is_reported(tmp_path):
    with pytest.raises(ExportError, match="Undecided cannot be exported"):
        export_program(Undecided(), torch.randn(2, 3), tmp_path / "net.pt2", metadata={})


@pytest.mark.parametrize("inputs", [(), (3,), (torch.tensor(1.0),)])
def test_inputs_need_a_batch_dimension(tmp_path, inputs):
    with pytest.raises(ExportError, match="tensors with a batch dimension"):
        export_program(Noisy(), inputs, tmp_path / "net.pt2", metadata={})


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_program_with_a_pickle_inside_is_refused_and_not_read(tmp_path):
    program = torch.export.export(nn.Linear(2, 2), (torch.randn(1, 2),))
    torch.export.save(program, tmp_path / "plain.pt2")
    with pytest.raises(ExportError, match="holds pickles"):
        load_program(tmp_path / "plain.pt2")  # PyTorch wrote the example inputs as one

    with zipfile.ZipFile(tmp_path / "plain.pt2") as plain:
        content = {info.filename: plain.read(info) for info in plain.infolist()}
    with zipfile.ZipFile(tmp_path / "trap.pt2", "w") as trap:
        for name, data in content.items():
            is_example = "sample_inputs" in name
            trap.writestr(name, pickle.dumps(Trap(tmp_path / "mark")) if is_example else data)
    with pytest.raises(ExportError, match="holds pickles"):
        load_program(tmp_path / "trap.pt2")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_refused(tmp_path, content):
    (tmp_path / "net.pt2").write_bytes(content)

    with pytest.raises(ExportError, match="no exported program"):
        load_program(tmp_path / "net.pt2")


def test_a_truncated_program_is_refused(exported, tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(exported[1].read_bytes()[:-100])

    with pytest.raises(ExportError, match="is no exported program"):
        load_program(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"cannot read .*net\.pt2: No such file"):
        load_program(tmp_path / "net.pt2")
