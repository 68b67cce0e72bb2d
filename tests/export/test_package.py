from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from autoprune.errors import ExportError
from autoprune.export.package import (
    METADATA_KEY,
    PLAN_FILE,
    WEIGHTS_FILE,
    load,
    read_package,
    save_package,
)
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import prune

FACTORY = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("ran").touch()
def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
"""


def halved(network):
    """Return a plan that keeps every second unit of every group."""
    return PruningPlan({group.name: tuple(range(0, group.size, 2)) for group in network.groups})


def edit(folder, **changes):
    """Overwrite entries of plan.json."""
    content = json.loads((folder / PLAN_FILE).read_text()) | changes
    (folder / PLAN_FILE).write_text(json.dumps(content))


@pytest.fixture
def pruned(build, images):
    network = trace(build(), (images,))
    plan = halved(network)
    model = prune(network, plan)
    with torch.no_grad():  # as a recovery would: the weights are no longer a cut of the original's
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model, plan


@pytest.fixture
def folder(pruned, images, metrics, tmp_path):
    model, plan = pruned
    return save_package(
        tmp_path / "network", model=model, plan=plan, inputs=(images,), source=None, metrics=metrics
    )


def linear_package(folder, metrics, source):
    """Save a pruned two-layer network whose architecture comes from ``source``."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    inputs = (torch.randn(1, 4),)
    network = trace(model, inputs)
    plan = halved(network)
    small = prune(network, plan)
    save_package(folder, model=small, plan=plan, inputs=inputs, source=source, metrics=metrics)
    return small


def test_a_loaded_network_computes_what_the_saved_one_did(pruned, folder, build, images):
    model, _ = pruned
    loaded = load(folder, build)

    assert sum(p.numel() for p in loaded.parameters()) < sum(
        p.numel() for p in build().parameters()
    )
    assert torch.equal(loaded(images), model(images))
    assert not loaded.training


def test_an_architecture_given_as_a_module_is_left_as_it_is(folder, build, pruned, images):
    original = build()
    before = copy.deepcopy(original.state_dict())
    loaded = load(folder, original)

    assert torch.equal(loaded(images), pruned[0](images))
    after = original.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_digits_network_loads_from_its_folder_alone(metrics, tmp_path):
    source = ModelSource.parse("digits")
    inputs = (torch.randn(2, 1, 8, 8),)
    network = trace(source.build(), inputs)
    plan = PruningPlan(halved(network).kept, tuple(block.name for block in network.blocks[:1]))
    model = prune(network, plan).eval()
    save_package(
        tmp_path, model=model, plan=plan, inputs=inputs, source=source.spec, metrics=metrics
    )

    assert torch.equal(load(tmp_path)(*inputs), model(*inputs))


def test_plan_json_says_what_was_known(folder, images, pruned):
    record = read_package(folder)

    assert record.pruning_plan == pruned[1]
    assert record.inputs[0].shape == tuple(images.shape)
    assert record.metrics.latency_ms == 1.25
    assert record.versions["torch"] == str(torch.__version__)
    assert record.sha256 == hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert {path.name for path in folder.iterdir()} == {PLAN_FILE, WEIGHTS_FILE}


def test_the_same_network_gives_the_same_bytes(pruned, images, metrics, tmp_path):
    model, plan = pruned
    first, second = (
        save_package(
            tmp_path / name, model=model, plan=plan, inputs=(images,), source=None, metrics=metrics
        )
        for name in "ab"
    )

    for name in (PLAN_FILE, WEIGHTS_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()


class Tied(nn.Module):
    """Two names for one weight, and two weights that are halves of one storage."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5, bias=False)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight
        whole = torch.randn(2, 5)
        self.upper, self.lower = nn.Parameter(whole[0]), nn.Parameter(whole[1])

    def forward(self, x):
        return self.second(self.first(x) * self.upper) + self.lower


def test_tied_weights_are_written_once_and_stay_tied(metrics, tmp_path):
    model = Tied()
    inputs = (torch.randn(2, 5),)
    save_package(
        tmp_path, model=model, plan=PruningPlan({}), inputs=inputs, source=None, metrics=metrics
    )
    loaded = load(tmp_path, Tied)

    with safe_open(tmp_path / WEIGHTS_FILE, "pt") as file:
        assert set(file.keys()) == {"first.weight", "upper", "lower"}
        assert json.loads(file.metadata()[METADATA_KEY])["tied"] == {
            "second.weight": "first.weight"
        }
    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(loaded(*inputs), model(*inputs))


def test_untied_weights_do_not_load_into_a_tied_architecture(metrics, tmp_path):
    model = Tied()
    model.second.weight = nn.Parameter(torch.randn(5, 5))
    inputs = (torch.randn(2, 5),)
    save_package(
        tmp_path, model=model, plan=PruningPlan({}), inputs=inputs, source=None, metrics=metrics
    )

    with pytest.raises(ExportError, match=r"shares second\.weight, the file does not"):
        load(tmp_path, Tied)


def test_number_types_come_from_the_file(build, images, metrics, tmp_path):
    network = trace(build().bfloat16(), (images.bfloat16(),))
    plan = halved(network)
    model = prune(network, plan)
    model.head.float()
    save_package(
        tmp_path,
        model=model,
        plan=plan,
        inputs=(images.bfloat16(),),
        source=None,
        metrics=metrics,
    )
    original = build()
    with pytest.raises(ExportError, match="dtype"):
        # The head in another type than the rest does not run, and the message says so.
        load(tmp_path, original)
    save_package(
        tmp_path,
        model=model.bfloat16(),
        plan=plan,
        inputs=(images.bfloat16(),),
        source=None,
        metrics=metrics,
    )
    loaded = load(tmp_path, original)

    assert loaded.stem.weight.dtype == torch.bfloat16
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(loaded(images.bfloat16()), model(images.bfloat16()))
    assert original.stem.weight.dtype == torch.float32


@pytest.mark.parametrize("name", [PLAN_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder, build, name):
    (folder / name).unlink()

    with pytest.raises(ExportError, match=f"lacks {name}"):
        load(folder, build)


def test_truncated_weights_are_refused(folder, build):
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(ExportError, match="is not the file that was saved"):
        load(folder, build)


def test_weights_that_are_no_safetensors_are_refused_even_with_their_hash(folder, build):
    (folder / WEIGHTS_FILE).write_bytes(b"not a tensor in sight")
    edit(folder, sha256=hashlib.sha256(b"not a tensor in sight").hexdigest())

    with pytest.raises(ExportError, match="is damaged"):
        load(folder, build)


@pytest.mark.parametrize("changes", [{"version": 2}, {"format": "something"}])
def test_another_version_or_format_is_refused(folder, build, changes):
    edit(folder, **changes, a_key_of_the_future=1)

    with pytest.raises(ExportError, match="use the autoprune that wrote it"):
        load(folder, build)


def test_all_faults_of_plan_json_come_at_once(folder, build):
    edit(
        folder,
        weights="../../etc/passwd",
        plan={"kept": {"stem": ["a"]}},
        inputs=[{"shape": [2**20, 2**20], "dtype": "float32"}, {"shape": [0], "dtype": "object"}],
        sha256="zz",
    )

    with pytest.raises(ExportError) as error:
        load(folder, build)
    for place in (
        "weights",
        "plan",
        "inputs.0.shape",
        "inputs.1.shape.0",
        "inputs.1.dtype",
        "sha256",
    ):
        assert f"{place}: " in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "null"])
def test_a_plan_that_is_no_json_object_is_refused(folder, build, content):
    (folder / PLAN_FILE).write_text(content)

    with pytest.raises(ExportError, match=r"is not JSON|is of format None"):
        load(folder, build)


def test_a_network_made_from_an_object_needs_its_architecture(folder):
    with pytest.raises(ExportError, match=r"pass the original, unpruned network .* as model="):
        load(folder)


def test_code_named_by_a_folder_runs_only_when_trusted(metrics, tmp_path):
    source = tmp_path / "nets.py"
    source.write_text(FACTORY)
    small = linear_package(tmp_path / "network", metrics, f"{source}:net")

    with pytest.raises(ExportError, match="trust_source=True"):
        load(tmp_path / "network")
    assert not (tmp_path / "ran").exists()

    loaded = load(tmp_path / "network", trust_source=True)
    assert (tmp_path / "ran").exists()
    assert torch.equal(loaded(torch.ones(3, 4)), small(torch.ones(3, 4)))


@pytest.mark.parametrize("source", ["nowhere/nets.py:net", "os:getcwd", "json.decoder:JSONDecoder"])
def test_an_untrusted_source_is_not_even_looked_for(metrics, tmp_path, source):
    linear_package(tmp_path, metrics, source)

    with pytest.raises(ExportError, match="would run Python code named by the file"):
        load(tmp_path)


def test_a_source_that_cannot_be_built_is_reported(metrics, tmp_path):
    linear_package(tmp_path, metrics, "torchvision:no_such_net")

    with pytest.raises(ExportError, match=r"'torchvision:no_such_net' cannot be built"):
        load(tmp_path)


def test_a_plan_for_another_architecture_is_refused(folder):
    with pytest.raises(ExportError, match=r"does not fit Sequential: .* as model="):
        load(folder, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))


def test_weights_of_another_shape_are_refused(folder, build):
    with pytest.raises(ExportError, match=r"do not fit Residual: (.|\n)*size mismatch for head"):
        load(folder, lambda: build(classes=5))


def test_a_factory_must_return_a_module(folder):
    with pytest.raises(ExportError, match="it returned dict"):
        load(folder, dict)


class Stateful(nn.Linear):
    """Keeps state that is no tensor."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def test_state_that_is_no_tensor_is_refused_before_anything_is_written(metrics, tmp_path):
    with pytest.raises(ExportError, match="Stateful keeps state that is no tensor: _extra_state"):
        save_package(
            tmp_path,
            model=Stateful(2, 2),
            plan=PruningPlan({}),
            inputs=(torch.randn(1, 2),),
            source=None,
            metrics=metrics,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inputs", [(), ([1, 2],), (torch.zeros(1, 2, dtype=torch.complex64),)])
def test_inputs_that_cannot_be_recorded_are_refused(metrics, tmp_path, inputs):
    with pytest.raises(ExportError, match="example input"):
        save_package(
            tmp_path,
            model=nn.Linear(2, 2),
            plan=PruningPlan({}),
            inputs=inputs,
            source=None,
            metrics=metrics,
        )
    assert not (tmp_path / PLAN_FILE).exists()
