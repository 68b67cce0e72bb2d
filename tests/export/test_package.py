from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

import pytest
import torch
from torch import nn

from autoprune.errors import ExportError
from autoprune.export.package import PLAN_FILE, WEIGHTS_FILE, load, read_package, save_package
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
    return model, network, plan


@pytest.fixture
def save(metrics):
    """Return a function that saves a network; by default the halved one, without a source."""

    def write(folder, network, *, model=None, plan=None, source=None):
        plan = halved(network) if plan is None else plan
        model = prune(network, plan) if model is None else model
        save_package(
            folder, model=model, network=network, plan=plan, source=source, metrics=metrics
        )
        return model

    return write


@pytest.fixture
def folder(pruned, save, tmp_path):
    model, network, plan = pruned
    save(tmp_path / "network", network, model=model, plan=plan)
    return tmp_path / "network"


def two_layers():
    """Return the traced network of FACTORY."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    return trace(model, torch.randn(1, 4))


def test_a_loaded_network_computes_what_the_saved_one_did(pruned, folder, build, images):
    model, *_ = pruned
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


def test_the_digits_network_loads_from_its_folder_alone(save, tmp_path):
    images = torch.randn(2, 1, 8, 8)
    network = trace(ModelSource.parse("digits").build(), images)
    plan = PruningPlan(halved(network).kept, tuple(block.name for block in network.blocks[:1]))
    model = save(tmp_path, network, plan=plan, source="digits").eval()

    assert torch.equal(load(tmp_path)(images), model(images))


def test_loading_traces_nothing(folder, build, monkeypatch):
    monkeypatch.setattr("autoprune.pruning.surgery.trace", None)
    monkeypatch.setattr(type(build()), "forward", None)

    assert not load(folder, build).training


def test_plan_json_says_what_was_known(folder, images, pruned):
    record = read_package(folder)

    assert record.pruning_plan == pruned[2]
    assert record.example_inputs()[0].shape == images.shape
    assert record.metrics.latency_ms == 1.25
    assert record.versions["torch"] == str(torch.__version__)
    assert record.sha256 == hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert {path.name for path in folder.iterdir()} == {PLAN_FILE, WEIGHTS_FILE}


def test_the_same_network_gives_the_same_bytes(pruned, save, tmp_path):
    model, network, plan = pruned
    for name in "ab":
        save(tmp_path / name, network, model=model, plan=plan)

    for name in (PLAN_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


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


def test_tied_weights_stay_tied(save, tmp_path):
    x = torch.randn(2, 5)
    model = save(tmp_path, trace(Tied(), x), plan=PruningPlan({}))
    loaded = load(tmp_path, Tied)

    assert loaded.first.weight is loaded.second.weight
    assert torch.equal(loaded(x), model(x))


def test_untied_weights_do_not_load_into_a_tied_architecture(save, tmp_path):
    model = Tied()
    model.second.weight = nn.Parameter(torch.randn(5, 5))
    save(tmp_path, trace(model, torch.randn(2, 5)), plan=PruningPlan({}))

    with pytest.raises(ExportError, match=r"shares second\.weight, the file does not"):
        load(tmp_path, Tied)


def test_number_types_come_from_the_file(build, images, save, tmp_path):
    network = trace(build().bfloat16(), images.bfloat16())
    model = prune(network, halved(network))
    model.head.float()
    original = build()
    save(tmp_path / "mixed", network, model=model)
    mixed = load(tmp_path / "mixed", original)
    save(tmp_path / "half", network, model=model.bfloat16())
    loaded = load(tmp_path / "half", original)

    assert (mixed.stem.weight.dtype, mixed.head.weight.dtype) == (torch.bfloat16, torch.float32)
    assert loaded.stem.weight.dtype == torch.bfloat16
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(loaded(images.bfloat16()), model(images.bfloat16()))
    assert original.stem.weight.dtype == torch.float32


class Remembering(nn.Module):
    """Makes buffers and a table in its first pass, and has one that no state dict holds."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)
        self.table = None
        self.register_buffer("scale", torch.rand(8), persistent=False)

    def forward(self, x):
        if self.table is None:
            self.table = torch.ones(len(x), 1)
            self.register_buffer("shift", torch.zeros(3))
            self.register_buffer("offset", torch.zeros(3), persistent=False)
        return self.second(self.first(x + self.shift + self.offset) * self.scale) + self.table


@pytest.mark.parametrize("has_run", [False, True])
def test_what_the_first_pass_makes_and_no_state_dict_holds_comes_back(has_run, save, tmp_path):
    x = torch.randn(4, 3)
    original = Remembering()
    if has_run:
        original(x)
    network = trace(original, x)
    model = prune(network, halved(network))
    with torch.no_grad():
        model(x)
        model.shift += 1
        model.offset += 2
    save(tmp_path, network, model=model)
    fresh = Remembering()

    assert len(model.scale) == 4
    assert torch.equal(load(tmp_path, fresh)(x), model(x))
    assert fresh.table is None  # the user's model has not run


class Warm(nn.Module):
    """Keeps what it computed from its weights while it is in eval mode."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(3, 3), None

    def train(self, mode=True):
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x):
        if self.training or self.kept is None:
            self.kept = self.layer.weight.softmax(0)
        return x @ self.kept


def test_what_the_given_model_has_computed_from_its_own_weights_is_not_taken_over(save, tmp_path):
    x = torch.randn(2, 3)
    model = save(tmp_path, trace(Warm(), x), plan=PruningPlan({})).eval()
    other = Warm().eval()
    other(x)

    assert torch.equal(load(tmp_path, other)(x), model(x))


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


@pytest.mark.parametrize("changes", [{"version": 1}, {"format": "something"}])
def test_another_version_or_format_is_refused(folder, build, changes):
    edit(folder, **changes, a_key_of_the_future=1)

    with pytest.raises(ExportError, match="use the autoprune that wrote it"):
        load(folder, build)


def test_all_faults_of_plan_json_come_at_once(folder, build):
    edit(
        folder,
        weights="../../etc/passwd",
        plan={"kept": {"stem": ["a"]}},
        inputs={"kind": "tuple", "items": [{"kind": "tensor", "shape": [0], "dtype": "object"}]},
        recipe={
            "cuts": [{"size": 2, "kept": [1, 0], "places": [["stem.weight", 0]]}],
            "dropped": [""],
            "attributes": {"heads": "4"},
            "guards": {"a": [["view", [[1]]]]},
        },
        sha256="zz",
    )

    with pytest.raises(ExportError) as error:
        load(folder, build)
    for place in (
        "weights",
        "plan",
        "inputs.tuple.items.0.tensor.shape.0",
        "inputs.tuple.items.0.tensor.dtype",
        "recipe.cuts.0",
        "recipe.dropped.0",
        "recipe.attributes.heads",
        "recipe.guards.a.0.1.0.1",
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


def test_code_named_by_a_folder_runs_only_when_trusted(save, tmp_path):
    source = tmp_path / "nets.py"
    source.write_text(FACTORY)
    small = save(tmp_path / "network", two_layers(), source=f"{source}:net")

    with pytest.raises(ExportError, match="trust_source=True"):
        load(tmp_path / "network")
    assert not (tmp_path / "ran").exists()

    loaded = load(tmp_path / "network", trust_source=True)
    assert (tmp_path / "ran").exists()
    assert torch.equal(loaded(torch.ones(3, 4)), small(torch.ones(3, 4)))


def test_a_project_can_be_moved_as_a_whole(save, tmp_path, monkeypatch):
    project = tmp_path / "here" / "project"
    project.mkdir(parents=True)
    (project / "nets.py").write_text(FACTORY)
    monkeypatch.chdir(project)
    small = save(project / "runs" / "network", two_layers(), source="nets.py:net")
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "there")

    loaded = load(tmp_path / "there" / "runs" / "network", trust_source=True)
    assert torch.equal(loaded(torch.ones(3, 4)), small(torch.ones(3, 4)))
    assert str(tmp_path) not in (tmp_path / "there" / "runs" / "network" / PLAN_FILE).read_text()


@pytest.mark.parametrize("source", ["nowhere/nets.py:net", "os:getcwd", "json.decoder:JSONDecoder"])
def test_an_untrusted_source_is_not_even_looked_for(save, tmp_path, source):
    save(tmp_path, two_layers(), source=source)

    with pytest.raises(ExportError, match="would run Python code named by the file"):
        load(tmp_path)


def test_a_source_that_cannot_be_built_is_reported(save, tmp_path):
    save(tmp_path, two_layers(), source="torchvision:no_such_net")

    with pytest.raises(ExportError, match=r"'torchvision:no_such_net' cannot be built"):
        load(tmp_path)


def test_a_plan_for_another_architecture_is_refused(folder):
    with pytest.raises(ExportError, match=r"does not fit Sequential: .* as model="):
        load(folder, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))


def test_weights_of_another_shape_are_refused(folder, build):
    with pytest.raises(ExportError, match=r"does not fit Residual: (.|\n)*size mismatch for head"):
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


def test_state_that_is_no_tensor_is_refused_before_anything_is_written(save, tmp_path):
    network = trace(Stateful(2, 2), torch.randn(1, 2))

    with pytest.raises(ExportError, match="Stateful keeps state that is no tensor: _extra_state"):
        save(tmp_path, network, plan=PruningPlan({}))
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_recorded_are_refused(save, tmp_path):
    network = trace(nn.Linear(2, 2), torch.randn(1, 2))
    odd = dataclasses.replace(network, inputs=(object(),))

    with pytest.raises(ExportError, match="an example input cannot be recorded"):
        save(tmp_path, odd)
    assert list(tmp_path.iterdir()) == []


def test_example_inputs_come_back_in_their_form(save, tmp_path):
    network = trace(nn.Linear(2, 2), torch.randn(1, 2))
    inputs = {"ids": torch.tensor([[3, 8]]), "sizes": [(2, 3), None], "scale": 0.5}
    save(tmp_path, dataclasses.replace(network, inputs=inputs))
    made = read_package(tmp_path).example_inputs()

    assert made["ids"].shape == (1, 2)
    assert made["sizes"] == inputs["sizes"]
    assert made["scale"] == 0.5
