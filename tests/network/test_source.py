from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from autoprune.errors import ModelError, UnknownNameError
from autoprune.network import fake
from autoprune.network.source import ModelSource, load_weights

SOURCE = """
import torch
from torch import nn

def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Dropout())

def text():
    return "model"

instance = nn.Linear(1, 1)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return path


def _net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _assert_same(model, state):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key


@pytest.mark.parametrize(
    ("spec", "kind", "trusted"),
    [
        ("digits", "digits", True),
        ("torchvision:resnet18", "torchvision", True),
        ("torchvision:resnet18(num_classes=10)", "torchvision", True),
        ("timm:resnet18.a1_in1k", "timm", True),
        ("json.decoder:make", "module", False),
    ],
)
def test_specs_are_told_apart(spec, kind, trusted):
    source = ModelSource.parse(spec)
    assert (source.spec, source.kind, source.trusted) == (spec, kind, trusted)


def test_files_are_made_absolute_and_never_trusted(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    source = ModelSource.parse("nets.py:net(width=5)")
    assert source.spec == f"{file}:net(width=5)"
    assert (source.kind, source.trusted) == ("file", False)
    monkeypatch.chdir("/")
    assert source.build()[0].out_channels == 5


@pytest.mark.parametrize("arguments", ["", "(num_hidden_layers=1)"])
@pytest.mark.parametrize("name", ["model", "model (2)"])
def test_folders_of_transformers_are_made_absolute(tmp_path, monkeypatch, name, arguments):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    source = ModelSource.parse(f"hf:{name}{arguments}")
    assert source.spec == f"hf:{tmp_path / name}{arguments}"
    assert (source.kind, source.trusted) == ("hf", True)
    assert source.call.name == str(tmp_path / name)
    assert source.call.kwargs == ({"num_hidden_layers": 1} if arguments else {})
    assert ModelSource.parse(source.spec) == source
    assert ModelSource.parse(f"hf:{name}/config.json").call.name.endswith("config.json")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:gone", r"there is no .*gone; hf: takes a local folder with config\.json"),
        ("hf:", r"there is no .*config\.json"),
        ("resnet50", "no model 'resnet50'. A model is one of digits, torchvision:NAME"),
        ("digit", "did you mean 'digits'"),
        ("digits:20", "A model is one of digits"),
        ("torchvison:resnet18", "no module named 'torchvison'.*did you mean 'torchvision'"),
        ("nets/a:net", "neither a module nor a file that ends in .py"),
        ("gone.py:net", r"there is no Python file .*gone\.py"),
        ("timm:resnet18(print)", "not Python literals"),
        ("", "A model is one of"),
    ],
)
def test_other_specs_are_refused_before_anything_is_built(spec, message):
    with pytest.raises(ModelError, match=message):
        ModelSource.parse(spec)


def test_a_missing_weights_file_is_refused_before_anything_is_built():
    with pytest.raises(ModelError, match=r"no weights file .*gone\.pt"):
        ModelSource.parse("digits", weights="gone.pt")


def test_digits_come_with_shipped_weights_in_evaluation_mode():
    model, notes = ModelSource.parse("digits").build_with_notes()
    assert not any(module.training for module in model.modules())
    assert notes == ()
    assert model.bn1.num_batches_tracked > 0


def test_random_weights_are_noted_and_the_same_for_the_same_seed():
    source = ModelSource.parse("torchvision:squeezenet1_1(num_classes=4)")
    state = torch.get_rng_state()
    first, notes = source.build_with_notes()
    assert torch.equal(torch.get_rng_state(), state)
    assert notes == (f"{source.spec} has random weights; give trained ones with --weights FILE",)
    _assert_same(source.build(), first.state_dict())
    other = source.build(seed=1)
    assert not torch.equal(other.classifier[1].weight, first.classifier[1].weight)


def test_a_factory_of_a_file_builds_in_evaluation_mode_without_a_note(file):
    model, notes = ModelSource.parse(f"{file}:net(7)").build_with_notes()
    assert model[0].out_channels == 7
    assert not any(module.training for module in model.modules())
    assert notes == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "returned a str; expected torch.nn.modules.module.Module"),
        ("ne", "did you mean 'net'"),
    ],
)
def test_factories_that_make_no_module_are_refused(file, name, message):
    with pytest.raises(ModelError, match=message):
        ModelSource.parse(f"{file}:{name}").build()


def test_an_instance_is_no_factory(file):
    with pytest.raises(ModelError, match="is no function but a Linear"):
        ModelSource.parse(f"{file}:instance").build()


def test_unknown_architectures_offer_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet"):
        ModelSource.parse("torchvision:resnett18").build()


def test_arguments_of_torchvision_need_names():
    with pytest.raises(ModelError, match="arguments need names"):
        ModelSource.parse("torchvision:resnet18(10)").build()


def test_describe_names_the_spec_and_the_weights_with_their_hash(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"content")
    assert ModelSource.parse("digits", weights=path).describe() == {
        "spec": "digits",
        "weights": str(path),
        "weights_sha256": hashlib.sha256(b"content").hexdigest(),
    }
    assert ModelSource.parse("digits").describe() == {
        "spec": "digits",
        "weights": None,
        "weights_sha256": None,
    }


def _save(path, content):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_bare_state_dict_loads_without_a_note(tmp_path, suffix):
    trained, model = _net(), _net()
    path = _save(tmp_path / f"w{suffix}", trained.state_dict())
    assert load_weights(model, path) == ()
    _assert_same(model, trained.state_dict())


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrappers_and_prefixes_are_taken_off_and_told(tmp_path, wrapper, prefix):
    trained, model = _net(), _net()
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    path = _save(tmp_path / "w.pt", {wrapper: state, "epoch": 3})
    notes = load_weights(model, path)
    assert notes == (
        f"took the entry {wrapper!r} of the checkpoint",
        f"stripped the prefix {prefix!r} from all 9 keys",
    )
    _assert_same(model, trained.state_dict())


def test_a_prefix_that_the_model_has_too_stays(tmp_path):
    trained, model = nn.ModuleDict({"module": _net()}), nn.ModuleDict({"module": _net()})
    assert load_weights(model, _save(tmp_path / "w.pt", trained.state_dict())) == ()
    _assert_same(model, trained.state_dict())


def test_half_precision_is_converted_and_told(tmp_path):
    trained, model = _net().half(), _net()
    notes = load_weights(model, _save(tmp_path / "w.safetensors", trained.state_dict()))
    assert notes == ("converted float16 to float32",)
    assert model[0].weight.dtype == torch.float32
    _assert_same(model, trained.state_dict())


def test_missing_batch_counters_are_told_and_nothing_else_may_be_missing(tmp_path):
    trained, model = _net(), _net()
    state = trained.state_dict()
    del state["1.num_batches_tracked"]
    notes = load_weights(model, _save(tmp_path / "w.pt", state))
    assert notes == ("1 batch counters of BatchNorm are not in the file",)
    del state["1.running_mean"]
    with pytest.raises(ModelError, match=r"1 missing from the file \(1\.running_mean\)"):
        load_weights(model, _save(tmp_path / "w.pt", state))


def test_every_kind_of_mismatch_is_listed_with_its_count_and_nothing_is_loaded(tmp_path):
    model = _net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {f"extra{index}": torch.zeros(1) for index in range(5)}
    state |= {key: value + 1 for key, value in before.items() if not key.startswith("0.")}
    state["2.weight"] = torch.zeros(9, 4)
    with pytest.raises(ModelError) as error:
        load_weights(model, _save(tmp_path / "w.pt", state))
    message = str(error.value)
    assert "2 missing from the file (0.bias, 0.weight)" in message
    assert "5 unknown to the model (extra0, extra1, extra2 and 2 more)" in message
    assert "1 of another shape (2.weight: (9, 4) in the file, (2, 4) in the model)" in message
    _assert_same(model, before)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "swapped"])
def test_damaged_files_are_model_errors(tmp_path, suffix, damage):
    path = _save(tmp_path / f"w{suffix}", _net().state_dict())
    data = path.read_bytes()
    other = _save(
        tmp_path / ("o.pt" if suffix == ".safetensors" else "o.safetensors"), _net().state_dict()
    )
    path.write_bytes(
        {
            "truncated": data[:-40],
            "text": b"not weights",
            "empty": b"",
            "swapped": other.read_bytes(),
        }[damage]
    )
    with pytest.raises(ModelError, match=re.escape(str(path))):
        load_weights(_net(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, not a state dict"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "epoch, weights are no tensor"),
        ({"state_dict": {"a": 1}}, "a is no tensor"),
        ({}, "9 missing from the file"),
    ],
)
def test_checkpoints_that_hold_no_state_dict_are_explained(tmp_path, content, message):
    with pytest.raises(ModelError, match=message):
        load_weights(_net(), _save(tmp_path / "w.pt", content))


def test_other_endings_and_missing_files_are_refused(tmp_path):
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(ModelError, match=r"not '\.h5'"):
        load_weights(_net(), tmp_path / "w.h5")
    with pytest.raises(ModelError, match="there is no weights file"):
        load_weights(_net(), tmp_path / "gone.pt")


def test_architectures_are_built_without_values_in_evaluation_mode():
    source = ModelSource.parse("torchvision:squeezenet1_1(num_classes=4)")
    model, notes = source.build_with_notes(fake=True)
    assert notes == ()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert [p.shape for p in model.parameters()] == [p.shape for p in source.build().parameters()]


def test_the_digits_network_has_no_values_either_where_none_are_wanted():
    model, notes = ModelSource.parse("digits").build_with_notes(fake=True)
    assert notes == ()
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_without_values_a_file_is_only_checked_to_fit(tmp_path, suffix, file):
    source = ModelSource.parse(f"{file}:net", weights=_save(tmp_path / f"w{suffix}", {}))
    _save(source.weights, ModelSource.parse(f"{file}:net").build().state_dict())
    model, (note,) = source.build_with_notes(fake=True)
    assert note == f"the weights in {source.weights} fit the model; their values are not read"
    assert model[0].weight.is_meta
    other = ModelSource.parse(f"{file}:net(7)", weights=source.weights)
    with pytest.raises(ModelError, match=r"0\.weight: \(4, 3, 3, 3\) in the file, \(7, 3, 3, 3\)"):
        other.build_with_notes(fake=True)


def test_what_would_not_fit_is_known_before_it_is_built(monkeypatch, file):
    small = ModelSource.parse("torchvision:squeezenet1_1")
    monkeypatch.setattr(fake, "_free_memory", lambda: 1_000_000)
    assert small.outgrows_memory()
    assert not ModelSource.parse("digits").outgrows_memory()
    assert not ModelSource.parse(f"{file}:net").outgrows_memory()
    monkeypatch.setattr(fake, "_free_memory", lambda: 1_000_000_000)
    assert not small.outgrows_memory()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["archive", "plain"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, form):
    victim, path = tmp_path / "victim", tmp_path / "w.pt"
    content = {"0.weight": torch.zeros(4, 3), "payload": _Touch(victim)}
    if form == "archive":
        torch.save(content, path)
        torch.load(path, weights_only=False)  # the attack works where nothing stops it
    else:
        path.write_bytes(pickle.dumps(content))
        pickle.loads(path.read_bytes())  # noqa: S301 - the attack, made two lines above
    assert victim.exists()
    victim.unlink()
    with pytest.raises(ModelError, match="would run code when loaded, which autoprune refuses"):
        load_weights(_net(), path)
    assert not victim.exists()
