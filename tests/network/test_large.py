"""Networks whose weights have no values are traced and cut like those that have them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from autoprune.errors import TraceError
from autoprune.network import fake
from autoprune.network.fake import ShapesOnly, outgrows_memory, weightless
from autoprune.network.huggingface import example_inputs, load_transformers
from autoprune.network.trace import trace
from autoprune.network.vision import build_timm, build_torchvision
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified

_SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
_TEXT = _SIZES | {"vocab_size": 50, "intermediate_size": 40, "max_position_embeddings": 12}
_PHOTO = _SIZES | {"intermediate_size": 40, "image_size": 32, "patch_size": 8}
_WHISPER = {
    **{"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40},
    **{"num_mel_bins": 8, "max_source_positions": 6, "max_target_positions": 16},
    **{"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
}
_NO_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SWIN = {"image_size": 32, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4}

#: Architecture of transformers and its configuration.
FAMILIES = {
    "LlamaForCausalLM": _TEXT | {"num_key_value_heads": 2},
    "MistralForCausalLM": _TEXT | {"num_key_value_heads": 2},
    "Qwen2ForCausalLM": _TEXT | {"num_key_value_heads": 2},
    "GemmaForCausalLM": _TEXT | {"num_key_value_heads": 2, "head_dim": 6},
    "MixtralForCausalLM": _TEXT | {"num_key_value_heads": 2, "num_local_experts": 4},
    "GPT2LMHeadModel": {"vocab_size": 50, "n_embd": 24, "n_layer": 1, "n_head": 4} | _NO_SPECIAL,
    "BertModel": _TEXT,
    "T5ForConditionalGeneration": {
        **{"vocab_size": 50, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 1, "num_heads": 4},
        "decoder_start_token_id": 0,
    },
    "MambaForCausalLM": {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1},
    "WhisperForConditionalGeneration": _WHISPER,
    "ViTModel": _PHOTO,
    "SwinModel": _SWIN,
    "CLIPModel": {
        "text_config": _TEXT | _NO_SPECIAL,
        "vision_config": _PHOTO,
        "projection_dim": 12,
    },
}


@pytest.fixture
def transformers():
    pytest.importorskip("transformers")
    return load_transformers()


def _described(network):
    """Return what can be cut and what cannot, but for measured errors in reasons."""
    return (
        {g.name: (g.size, g.kind, g.mixed, [(m.path, m.dim) for m in g.members])
         for g in network.groups},
        [block.name for block in network.blocks],
        set(network.frozen),
        dict(network.unsupported),
        int(network.ops.macs()[0]),
    )  # fmt: skip


def _with_and_without_values(transformers, name):
    """Return two models of one architecture, and inputs for both."""
    cls = getattr(transformers, name)
    config = cls.config_class(**FAMILIES[name], use_cache=False)
    model = cls(config)
    with weightless():
        shapes = cls(config)
    assert all(parameter.is_meta for parameter in shapes.parameters())
    inputs = example_inputs(model)
    few = {k: v[:, :6] if k.endswith("input_ids") else v for k, v in inputs.items()}
    return model, shapes, few


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers_are_traced_alike_without_values(transformers, name):
    model, shapes, inputs = _with_and_without_values(transformers, name)
    network = trace(shapes, inputs)
    assert len(network.groups) >= 2
    assert _described(network) == _described(trace(model, inputs))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_families_of_transformers_are_cut_alike_without_values(transformers, name):
    torch.manual_seed(0)
    model, shapes, inputs = _with_and_without_values(transformers, name)
    network = verified(trace(shapes, inputs))
    assert network.checked == "shapes"
    real = verified(trace(model, inputs))
    assert real.checked == "values"
    assert _described(network) == _described(real)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "SwinModel"])
def test_a_model_that_is_wholly_on_the_meta_device_is_traced_as_well(transformers, name):
    _, shapes, inputs = _with_and_without_values(transformers, name)
    with torch.device("meta"):
        meta = type(shapes)(shapes.config)
    assert all(buffer.is_meta for buffer in meta.buffers())
    expected = _described(trace(shapes, inputs))
    assert _described(trace(meta, inputs)) == expected
    on_meta = {name: tensor.to("meta") for name, tensor in inputs.items()}
    assert _described(trace(meta, on_meta)) == expected


@pytest.mark.parametrize(
    ("build", "name", "size"),
    [
        (build_timm, "test_resnet", 32),
        pytest.param(build_timm, "test_vit", 160, marks=pytest.mark.slow),
        pytest.param(build_torchvision, "regnet_y_400mf", 32, marks=pytest.mark.slow),
        pytest.param(build_torchvision, "mobilenet_v3_small", 32, marks=pytest.mark.slow),
        pytest.param(build_timm, "test_convnext", 64, marks=pytest.mark.slow),
    ],
)
def test_networks_for_images_are_the_same_without_values(build, name, size):
    model = build(name)
    with weightless():
        shapes = build(name)
    inputs = torch.randn(2, 3, size, size)
    network = verified(trace(shapes, inputs))
    assert network.checked == "shapes"
    assert _described(network) == _described(verified(trace(model, inputs)))


def _llama(transformers, layers, **changes):
    config = transformers.LlamaConfig(
        **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008},
        **{"num_hidden_layers": layers, "num_attention_heads": 32, "use_cache": False, **changes},
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("key_values", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_layers_of_a_7b_llama_are_cut_by_shape_through_the_python_api(transformers, key_values):
    model = _llama(transformers, 1, num_key_value_heads=key_values)
    network = verified(trace(model, torch.zeros(1, 4, dtype=torch.int64)))
    kinds = {(group.kind, group.size) for group in network.groups}
    assert kinds == {("channel", 4096), ("channel", 11008), ("head", key_values)}
    assert network.checked == "shapes"
    heads = next(group for group in network.groups if group.size == key_values)
    pruned = Surgeon(network).cut(PruningPlan({heads.name: (0, 3)}))
    attention = pruned.get_submodule(heads.name.rpartition(".")[0])
    assert attention.v_proj.weight.is_meta
    assert attention.v_proj.weight.shape == (2 * 128, 4096)
    assert attention.o_proj.weight.shape == (4096, 2 * 4096 // key_values)


_WHOLE = """
import resource, torch
from autoprune.network.huggingface import load_transformers
from autoprune.network.trace import trace
from autoprune.pruning.verify import verified
transformers = load_transformers()
config = transformers.LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, use_cache=False)
with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config)
network = verified(trace(model, torch.zeros(1, 16, dtype=torch.int64)))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(network.groups), len(network.blocks), int(network.ops.params()[0]), peak * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in kilobytes on Linux alone")
def test_a_whole_7b_llama_takes_less_memory_than_its_weights(transformers):
    done = subprocess.run(
        [sys.executable, "-c", _WHOLE], capture_output=True, text=True, check=True
    )
    groups, blocks, params, peak = map(int, done.stdout.split())
    assert (groups, blocks) == (65, 32)
    per_layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 11008 + 2)
    assert params == 2 * 32000 * 4096 + 32 * per_layer + 4096
    assert peak < 6e9


class _Decides(nn.Module):
    def __init__(self, about: str) -> None:
        super().__init__()
        self.a, self.b, self.about = nn.Linear(4, 8), nn.Linear(8, 3), about
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        if self.about == "input" and bool((x > 100).any()):
            raise AssertionError("values that depend on no weight are known")
        if self.about == "weights" and bool((hidden > 0).any()):
            hidden = hidden * 2
        if self.about == "written":
            store = torch.zeros(2, 8, device=hidden.device)
            store[:, :4] = hidden[:, :4]
            if bool(store[:, 4:].any()):
                hidden = store
        if self.about == "stored":
            store = torch.zeros(2, hidden.shape[1], device=hidden.device)
            store[:] = hidden
            hidden = store + 1
        return self.b(hidden)[:, self.mask]


def _without_values(about):
    with weightless():
        return _Decides(about)


def test_what_depends_on_no_weight_decides_by_its_value():
    network = verified(trace(_without_values("input"), torch.randn(2, 4)))
    assert [group.size for group in network.groups] == [8]


def test_what_is_written_into_a_tensor_with_values_has_none():
    network = verified(trace(_without_values("stored"), torch.randn(2, 4)))
    real = verified(trace(_Decides("stored"), torch.randn(2, 4)))
    assert [group.name for group in network.groups] == [group.name for group in real.groups]


@pytest.mark.parametrize("about", ["weights", "written"])
def test_a_decision_by_weights_that_have_no_values_is_never_guessed(about):
    with pytest.raises(TraceError, match=r"depends on the weights, and these have none.*_Decides"):
        trace(_without_values(about), torch.randn(2, 4))


class _Shifts(nn.Module):
    """Attention whose number of heads happens to equal another number that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.shift = 4, 4
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x.roll(self.shift, 1)).reshape(n, t, 3, self.num_heads, 6)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(n, t, -1))


def test_an_attribute_that_equals_a_width_by_chance_does_not_follow_it():
    with weightless():
        model = nn.Sequential(nn.Linear(5, 24), _Shifts(), nn.Linear(24, 3))
    network = verified(trace(model, torch.randn(2, 7, 5)))
    heads = next(group for group in network.groups if group.size == 4)
    assert [mirror.attribute for mirror in heads.mirrors] == ["1.num_heads"]


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Parameter(torch.randn(3, 3), requires_grad=False)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.first.weight = shared
        self.second.weight = shared
        self.register_buffer("table", torch.arange(3))


def test_parameters_lose_their_values_and_nothing_else():
    with weightless():
        model = _Tied()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.first.weight is model.second.weight
    assert not model.first.weight.requires_grad
    assert model.table.tolist() == [0, 1, 2]
    assert not nn.Linear(2, 2).weight.is_meta


def test_what_meets_no_unknown_value_is_computed():
    with ShapesOnly():
        assert torch.arange(3, device="meta").tolist() == [0, 1, 2]
        unknown = torch.empty(3, 2).to("meta") @ torch.ones(2, 2)
    assert unknown.is_meta or unknown.device.type == "cpu"


def test_half_precision_has_no_values_either():
    with weightless():
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(torch.bfloat16)
    network = verified(trace(model, torch.randn(2, 4, dtype=torch.bfloat16)))
    assert [group.size for group in network.groups] == [8]


def test_weights_above_a_quarter_of_the_free_memory_are_too_large(monkeypatch):
    model = nn.Linear(100, 100, bias=False)
    monkeypatch.setattr(fake, "_free_memory", lambda: 4 * 40_000)
    assert not outgrows_memory(model)
    monkeypatch.setattr(fake, "_free_memory", lambda: 4 * 40_000 - 1)
    assert outgrows_memory(model)
    monkeypatch.setattr(fake, "_free_memory", lambda: None)
    assert not outgrows_memory(model)


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(fake, "_CGROUP", tmp_path)
    machine = fake._free_memory()
    assert machine is None or machine > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.stat").write_text("anon 600\nfile 70\n")
    assert fake._container_memory() is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert fake._container_memory() == 400
    assert fake._free_memory() == 400
