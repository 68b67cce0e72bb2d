from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
import torch

from autoprune.errors import ModelError
from autoprune.network.huggingface import (
    build_hf,
    config_file,
    example_inputs,
    is_pretrained,
    load_transformers,
)
from autoprune.network.source import ModelSource

LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 50},
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}
_TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
_IMAGE = {**_TINY, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
_TEXT = {**_TINY, "num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 40}
_WHISPER = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
    **{"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16},
    **{"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
}


@pytest.fixture
def transformers(monkeypatch):
    """The package, with every way into the network cut."""
    pytest.importorskip("transformers")

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return load_transformers()


def _folder(path, **changes):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return path


@pytest.fixture
def trained(transformers, tmp_path):
    """A model and the folder that it is saved in."""
    torch.manual_seed(0)
    folder = _folder(tmp_path / "llama")
    model, _ = build_hf(folder)
    model.save_pretrained(folder)
    return model.eval(), folder


def _same(model, other):
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        return torch.equal(model.eval()(ids).logits, other.eval()(ids).logits)


def test_weights_come_from_safetensors(trained):
    model, folder = trained
    again, notes = build_hf(folder)
    assert notes == ()
    assert type(again).__name__ == "LlamaForCausalLM"
    assert _same(model, again)


def test_weights_come_from_shards(trained, tmp_path):
    model, _ = trained
    folder = tmp_path / "shards"
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert _same(model, build_hf(folder)[0])


def test_half_precision_is_read_in_single(trained, tmp_path):
    model, _ = trained
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    again, _ = build_hf(tmp_path / "half")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.float())


def test_a_configuration_alone_gives_random_weights(trained):
    model, folder = trained
    other, _ = build_hf(folder / "config.json")
    assert not _same(model, other)
    assert not _same(model, build_hf(folder, values=False)[0])


def test_arguments_change_the_configuration_and_what_is_left_over_is_told(trained):
    _, folder = trained
    model, (note,) = build_hf(folder, num_hidden_layers=1)
    assert len(model.model.layers) == 1
    assert "9 weights of" in note
    assert "model.layers.1." in note


def test_the_architecture_is_automodels_where_none_is_named(transformers, tmp_path):
    folder = _folder(tmp_path, architectures=None)
    assert type(build_hf(folder)[0]) is transformers.LlamaModel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "model type 'lama', which transformers.*did you mean 'llama'"),
        ({"model_type": None}, "has no entry 'model_type'"),
        ({"architectures": ["Mine"]}, "architecture 'Mine'.*code that comes with a model"),
        ({"architectures": ["LlamaConfig"]}, "architecture 'LlamaConfig'"),
        ({"num_attention_heads": 3}, "refuses"),
        ({"hidden_act": "gelly"}, "refuses"),
    ],
)
def test_configurations_that_describe_no_model_are_refused(
    transformers, tmp_path, changes, message
):
    with pytest.raises(ModelError, match=message):
        build_hf(_folder(tmp_path, **changes))


def test_an_unknown_argument_is_refused(transformers, tmp_path):
    with pytest.raises(ModelError, match=r"no entry num_hiden_layers.*'num_hidden_layers'"):
        build_hf(_folder(tmp_path), num_hiden_layers=1)


def test_code_that_comes_with_a_model_is_not_run(transformers, tmp_path):
    folder = _folder(
        tmp_path,
        auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"},
        attn_implementation="somebody/kernels",
        _attn_implementation="somebody/kernels",
    )
    (folder / "evil.py").write_text("raise AssertionError('this code must not run')")
    assert type(build_hf(folder)[0]) is transformers.LlamaForCausalLM


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is no JSON"), (b"[1]", "no entry 'model_type'")]
)
def test_damaged_configurations_are_refused(transformers, tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        build_hf(tmp_path)


def test_weights_that_do_not_fit_are_refused(trained):
    _, folder = trained
    with pytest.raises(ModelError, match=r"do not fit LlamaForCausalLM: \d+ are missing"):
        build_hf(folder, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"cannot be read|do not fit"):
        build_hf(folder, intermediate_size=32)


def test_damaged_weights_are_refused(trained):
    _, folder = trained
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read into LlamaForCausalLM"):
        build_hf(folder)


def test_pickles_are_refused(transformers, tmp_path):
    folder = _folder(tmp_path)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"are pickles \(pytorch_model.bin\), which are not read"):
        build_hf(folder)
    assert build_hf(folder, values=False)[1] == ()


def test_quantised_weights_are_refused(trained):
    _, folder = trained
    _folder(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantised, and pruning needs plain ones"):
        build_hf(folder)


def test_a_missing_folder_is_told_and_nothing_is_fetched(tmp_path):
    with pytest.raises(ModelError, match=r"there is no .*Nothing is downloaded"):
        config_file("meta-llama/Llama-2-7b-hf")
    with pytest.raises(ModelError, match=r"there is no .*config\.json"):
        config_file(tmp_path)


#: Architecture, its configuration, and the shapes of what it takes.
INPUTS = [
    ("BertModel", _TEXT, {"input_ids": (1, 20)}),
    ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2}, {"input_ids": (1, 32)}),
    (
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 50,
         "decoder_start_token_id": 0},
        {"input_ids": (1, 32), "decoder_input_ids": (1, 32)},
    ),
    ("ViTModel", _IMAGE, {"pixel_values": (1, 3, 16, 16)}),
    (
        "CLIPModel",
        {"text_config": {**_TEXT, "bos_token_id": 1, "eos_token_id": 2}, "vision_config": _IMAGE},
        {"input_ids": (1, 20), "pixel_values": (1, 3, 16, 16)},
    ),
    ("CLIPVisionModel", _IMAGE, {"pixel_values": (1, 3, 16, 16)}),
    (
        "WhisperForConditionalGeneration",
        _WHISPER,
        {"input_features": (1, 8, 20), "decoder_input_ids": (1, 8)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "shapes"), INPUTS, ids=[entry[0] for entry in INPUTS])
def test_models_say_what_they_take(transformers, name, config, shapes):
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**config)).eval()
    assert is_pretrained(model)
    inputs = example_inputs(model)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == shapes
    with torch.no_grad():
        model(**inputs)
    half = example_inputs(model.to(torch.bfloat16))
    types = {tensor.dtype for tensor in half.values() if tensor.is_floating_point()}
    assert types <= {torch.bfloat16}


def test_inputs_that_nobody_knows_are_asked_for(transformers):
    class Odd(torch.nn.Linear):
        main_input_name = "pressure"
        config = None

    with pytest.raises(ModelError, match=r"no example input pressure is known for Odd.*--input"):
        example_inputs(Odd(2, 2))


def test_the_source_builds_with_and_without_values(trained):
    model, folder = trained
    source = ModelSource.parse(f"hf:{folder}")
    again, notes = source.build_with_notes()
    assert (source.kind, source.trusted, notes) == ("hf", True, ())
    assert _same(model, again)
    shapes, notes = source.build_with_notes(fake=True)
    assert all(parameter.is_meta for parameter in shapes.parameters())
    assert notes == ()


def test_a_file_of_weights_takes_the_place_of_those_beside_the_configuration(trained, tmp_path):
    model, folder = trained
    changed = {name: tensor * 0.5 for name, tensor in model.state_dict().items()}
    torch.save(changed, tmp_path / "w.pt")
    source = ModelSource.parse(f"hf:{folder}", weights=tmp_path / "w.pt")
    assert torch.equal(source.build().lm_head.weight, changed["lm_head.weight"])


def test_transformers_is_imported_only_when_it_is_needed():
    code = """
import sys
from autoprune.network import huggingface, source
print("transformers" in sys.modules, "torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_missing_package_is_told_with_the_way_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'not installed.*autoprune\[huggingface\]"'):
        build_hf(_folder(tmp_path))
