"""Families of Hugging Face's transformers, built from small configurations."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.errors import PruningError
from autoprune.network.call import tensors_in
from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.network.vision import load_torchvision
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon, replay
from autoprune.pruning.verify import verified

if importlib.util.find_spec("torchvision") is not None:
    load_torchvision()  # declares what transformers' import of torchvision may miss
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

#: Why something of these networks cannot be cut: what they read and what they return.
BOUNDARY = {
    "network output",
    "reads a fixed tensor",
    "rows of a table are named by number",
    "meets a fixed tensor in add",  # positions of a learned table
    "picked by number in index",  # rows of a table
}
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 96}
IMAGES = {"image_size": 32, "patch_size": 8}

Built = tuple[nn.Module, dict[str, Tensor]]


class _Only(nn.Module):
    """Returns one field of what a model returns, so that the others are no network outputs."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model = model
        self.field = field

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs)[self.field]


def _ids() -> Tensor:
    return torch.randint(3, 96, (2, 11), generator=torch.Generator().manual_seed(0))


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _text(model: str, config: str, **changes: Any) -> Built:
    settings = SIZES | TOKENS | {"max_position_embeddings": 32} | changes
    built = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return built, {"input_ids": _ids()}


def _decoder(name: str, **changes: Any) -> Built:
    return _text(f"{name}ForCausalLM", f"{name}Config", **({"num_key_value_heads": 2} | changes))


def _bert() -> Built:
    model, inputs = _text("BertForMaskedLM", "BertConfig")
    return model, inputs | {"attention_mask": torch.ones(2, 11, dtype=torch.int64)}


def _distilbert() -> Built:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    return _text("DistilBertForSequenceClassification", "DistilBertConfig", **sizes)


def _gpt2() -> Built:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **TOKENS)
    return transformers.GPT2LMHeadModel(config), {"input_ids": _ids()}


def _image(name: str) -> Built:
    config = getattr(transformers, f"{name}Config")(**SIZES, **IMAGES)
    model = getattr(transformers, f"{name}ForImageClassification")(config)
    return model, {"pixel_values": _normal(2, 3, 32, 32)}


def _swin() -> Built:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    return transformers.SwinForImageClassification(config), {"pixel_values": _normal(2, 3, 32, 32)}


def _clip(part: str) -> Built:
    text = SIZES | {"vocab_size": 96, "max_position_embeddings": 32, "eos_token_id": 2}
    text["projection_dim"] = 24
    image = SIZES | IMAGES | {"projection_dim": 24}
    inputs = {"input_ids": _ids(), "pixel_values": _normal(2, 3, 32, 32)}
    if part == "text":
        tower = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
        return _Only(tower, "text_embeds"), {"input_ids": inputs["input_ids"]}
    if part == "vision":
        tower = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**image))
        return _Only(tower, "image_embeds"), {"pixel_values": inputs["pixel_values"]}
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=24)
    return _Only(transformers.CLIPModel(config), "logits_per_image"), inputs


def _whisper(*, encoder_only: bool) -> Built:
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=32,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **TOKENS,
    )
    inputs = {"input_features": _normal(2, 16, 40)}
    if encoder_only:
        return transformers.WhisperForAudioClassification(config), inputs
    model = transformers.WhisperForConditionalGeneration(config)
    return _Only(model, "logits"), inputs | {"decoder_input_ids": _ids()}


def _t5(*, encoder_only: bool) -> Built:
    config = transformers.T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    if encoder_only:
        return transformers.T5EncoderModel(config), {"input_ids": _ids()}
    model = transformers.T5ForConditionalGeneration(config)
    return _Only(model, "logits"), {"input_ids": _ids(), "decoder_input_ids": _ids()}


def _mamba() -> Built:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **TOKENS)
    return transformers.MambaForCausalLM(config), {"input_ids": _ids()}


@dataclasses.dataclass(frozen=True)
class _Family:
    """How a family is built and what is expected of it.

    Attributes:
        build: Returns the model and its inputs.
        heads: Groups of attention heads (or key/value groups), by units.
        macs: Least share of multiply-accumulates that can be cut.
        stream: Units of the widest mixed group, the residual stream; 0 where it is an output.
        experts: Groups of experts.
    """

    build: Callable[[], Built]
    heads: list[int]
    macs: float = 0.95
    stream: int = 32
    experts: int = 0


FAMILIES = {
    "bert": _Family(_bert, [4, 4]),
    "distilbert": _Family(_distilbert, [4, 4]),
    "gpt2": _Family(_gpt2, [4, 4]),
    "llama": _Family(lambda: _decoder("Llama"), [2, 2]),
    "mistral": _Family(lambda: _decoder("Mistral"), [2, 2]),
    "qwen2": _Family(lambda: _decoder("Qwen2"), [2, 2]),
    "gemma": _Family(lambda: _decoder("Gemma", head_dim=8), [2, 2]),
    "mixtral": _Family(lambda: _decoder("Mixtral", num_local_experts=4), [2, 2], 0.85, experts=2),
    "vit": _Family(lambda: _image("ViT"), [4, 4]),
    "deit": _Family(lambda: _image("DeiT"), [4, 4]),
    "swin": _Family(_swin, [2, 2, 4, 4], 0.9),
    "clip text": _Family(lambda: _clip("text"), [4, 4]),
    "clip vision": _Family(lambda: _clip("vision"), [4, 4]),
    "clip": _Family(lambda: _clip("both"), [4, 4, 4, 4]),
    "whisper encoder": _Family(lambda: _whisper(encoder_only=True), [4, 4]),
    "whisper": _Family(lambda: _whisper(encoder_only=False), [4] * 6),
    # All layers of a stack share one position bias, so the same heads go everywhere.
    "t5 encoder": _Family(lambda: _t5(encoder_only=True), [4], 0.8, stream=0),
    "t5": _Family(lambda: _t5(encoder_only=False), [4, 4, 4]),
    "mamba": _Family(_mamba, [], 0.98),
}


def _plan(network: Network, *, mixed: bool) -> PruningPlan:
    """Return a plan that cuts every group by a different share."""
    rng = np.random.default_rng(0)
    kept = {}
    for group in network.groups:
        allowed = [width for width in range(1, group.size) if group.allows(width)]
        if mixed or not group.mixed:
            units = rng.choice(group.size, rng.choice(allowed), replace=False)
            kept[group.name] = tuple(sorted(units.tolist()))
    return PruningPlan(kept)


def _run(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in tensors_in(model.eval()(**inputs)) if t.is_floating_point()]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_traced_cut_and_loaded_again(name: str) -> None:
    family = FAMILIES[name]
    torch.manual_seed(0)
    model, inputs = family.build()
    network = verified(trace(model.eval(), inputs))

    assert not network.unsupported
    assert set(network.frozen.values()) <= BOUNDARY
    kinds = [group.kind for group in network.groups]
    assert sorted(g.size for g in network.groups if g.kind == "head") == family.heads
    assert kinds.count("expert") == family.experts
    assert network.ops.prunable_shares()[0] >= family.macs
    channels = [g.size for g in network.groups if g.kind == "channel" and g.mixed]
    assert max(channels, default=0) == family.stream

    surgeon = Surgeon(network)
    exact = _plan(network, mixed=False)
    for got, want in zip(
        _run(surgeon.cut(exact), inputs), _run(surgeon.mask(exact), inputs), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    plan = surgeon.complete(_plan(network, mixed=True))
    pruned = surgeon.cut(plan)
    outputs = _run(pruned, inputs)
    assert [t.shape for t in outputs] == [t.shape for t in _run(model, inputs)]
    assert all(bool(t.isfinite().all()) for t in outputs)
    widths = np.array([[len(plan.kept[group.name]) for group in network.groups]])
    assert network.ops.params(widths)[0] == sum(p.numel() for p in pruned.parameters())
    assert network.ops.macs(widths)[0] == trace(pruned, inputs).ops.macs()[0]

    fresh, _ = family.build()
    again = replay(fresh.eval(), inputs, PruningPlan.from_json(plan.to_json()))
    again.load_state_dict(pruned.state_dict())
    assert all(map(torch.equal, _run(again, inputs), outputs))


def _tied_llama() -> Built:
    return _decoder("Llama", tie_word_embeddings=True)


@pytest.mark.parametrize("build", [_gpt2, _bert, _tied_llama])
def test_tied_embeddings_are_cut_once_and_stay_tied(build: Callable[[], Built]) -> None:
    model, inputs = build()
    network = verified(trace(model.eval(), inputs))
    stream = next(group for group in network.groups if group.mixed and group.size == 32)
    places = [(member.path, member.dim) for member in stream.members]
    assert len(places) == len(set(places))

    surgeon = Surgeon(network)
    plan = surgeon.complete(PruningPlan({stream.name: tuple(range(12))}))
    pruned = surgeon.cut(plan)
    fresh = replay(build()[0].eval(), inputs, plan)
    fresh.load_state_dict(pruned.state_dict())
    for cut in (pruned, fresh):
        table = cut.get_input_embeddings().weight
        assert table.shape == (96, 12)
        assert table is cut.get_output_embeddings().weight
    assert all(map(torch.equal, _run(fresh, inputs), _run(pruned, inputs)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_a_pruned_decoder_generates_with_its_cache_what_it_does_without(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[name].build()
    network = verified(trace(model.eval(), inputs))
    pruned: Any = Surgeon(network).cut(_plan(network, mixed=True)).eval()
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    cached = pruned.generate(**inputs, use_cache=True, **settings)
    assert cached.shape == (2, 15)
    assert torch.equal(cached, pruned.generate(**inputs, use_cache=False, **settings))


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_cutting_experts_equals_a_router_that_never_picks_them(implementation: str) -> None:
    """Unlike with zeroed weights: a router goes on picking those, and its softmax counts them."""
    torch.manual_seed(0)
    model, inputs = _decoder("Mixtral", num_local_experts=6)
    model.config._experts_implementation = implementation
    network = verified(trace(model.eval(), inputs))
    experts = [group for group in network.groups if group.kind == "expert"]
    assert [(g.size, g.least, g.mixed) for g in experts] == [(6, 2, True)] * 2
    assert {(m.path.rpartition(".")[2], m.dim, m.per_unit) for m in experts[0].members} == {
        ("weight", 0, 1),
        ("gate_up_proj", 0, 1),
        ("down_proj", 0, 1),
    }

    plan = PruningPlan({experts[0].name: (1, 2, 5), experts[1].name: (0, 4)})
    pruned: Any = Surgeon(network).cut(plan)
    got = _run(pruned, inputs)
    for group, layer in zip(experts, model.model.layers, strict=True):
        layer.mlp.gate.register_forward_hook(_never(sorted({*range(6)} - {*plan.kept[group.name]})))
    for one, other in zip(got, _run(model, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(PruningError, match="expected at least 2"):
        Surgeon(network).cut(PruningPlan({experts[0].name: (3,)}))


def _never(gone: list[int]) -> Callable[..., Any]:
    """Return a hook after which a router has not picked some experts."""

    def hook(router: Any, args: Any, output: Any) -> Any:
        logits = output[0].clone()
        logits[:, gone] = -math.inf
        scores, picked = logits.softmax(-1).topk(router.top_k, dim=-1)
        return logits, scores / scores.sum(-1, keepdim=True), picked

    return hook


def test_a_field_that_is_returned_freezes_the_stream_it_shows() -> None:
    model, inputs = _t5(encoder_only=False)
    network = verified(trace(model.model.eval(), inputs))
    assert network.frozen["encoder.block.0.layer.0.SelfAttention.o"] == "network output"
    assert [g.size for g in network.groups if g.kind == "head"] == [4, 4, 4]
