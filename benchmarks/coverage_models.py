"""The networks of `coverage.py` and what each is called with; nothing is downloaded.

The Hugging Face families need `transformers`, which autoprune does not install.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.network.inputs import Inputs
from autoprune.network.source import ModelSource
from autoprune.network.vision import load_torchvision, timm_names
from autoprune.testing.architectures import DiffusionUNet, RecurrentClassifier, UNet


@dataclasses.dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: Row of the page.
        family: Its section of the page.
        build: Makes it, with random weights, in eval mode.
        inputs: Makes what it is called with.
        source: How autoprune names it, ``None`` where it has no name for it.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Tensor | Inputs]
    source: str | None = None


def images(*shape: int) -> Tensor:
    """Return a batch of one random image (or clip)."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def tokens(count: int = 16, words: int = 128) -> Tensor:
    """Return a batch of one random text."""
    return torch.randint(words, (1, count), generator=torch.Generator().manual_seed(0))


def cases() -> Iterator[Case]:
    """Yield every network, by family."""
    yield from map(_named, [*_classifiers(), *_timm()])
    yield from _in_tables()


def case_named(name: str) -> Case:
    """Return the case of a name; any other name that autoprune knows as a model takes an image."""
    return next((case for case in _in_tables() if case.name == name), None) or _named(name)


def _in_tables() -> Iterator[Case]:
    """Yield the networks whose inputs are written down here."""
    for family, table in _TORCHVISION.items():
        for name, (shape, kwargs) in table.items():
            yield _torchvision(family, name, shape, kwargs)
    for name, (model, config, inputs, options) in _HUGGING_FACE.items():
        build = functools.partial(_transformer, model, config, options)
        yield Case(f"hf:{name}", "Hugging Face", build, functools.partial(_given, inputs))
    for name, (make, inputs) in _OWN.items():
        yield Case(name, "own", _evaluating(make), functools.partial(_given, inputs))


def _named(source: str) -> Case:
    family = "timm" if source.startswith("timm:") else "torchvision classification"
    return Case(source, family, _builder(source), _image_for, source)


def _builder(source: str) -> Callable[[], nn.Module]:
    return lambda: ModelSource.parse(source).build()


def _evaluating(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make().eval()


#: Models that take images of any size, and whose own would cost half a minute a pass.
_SIDES = {
    "gemma4_vit": 224,
    "deepseek_vit": 224,
    "qwen3_vit": 224,
    "mobilenetv5": 256,
    "sam2_hiera": 256,
}


def _image_for(model: nn.Module) -> Tensor:
    about = getattr(model, "default_cfg", None) or {}
    channels, height, width = about.get("input_size", (3, 224, 224))
    name = str(about.get("architecture", ""))
    side = next((side for start, side in _SIDES.items() if name.startswith(start)), None)
    return images(channels, side or height, side or width)


def _given(make: Callable[[], Inputs], model: nn.Module) -> Tensor | Inputs:
    return make()


def _classifiers() -> list[str]:
    """Return the smallest member of every family of torchvision's classifiers."""
    names = (
        "alexnet vgg11 vgg11_bn resnet18 resnext50_32x4d wide_resnet50_2 densenet121 googlenet "
        "inception_v3 squeezenet1_1 mobilenet_v2 mobilenet_v3_small mnasnet0_5 efficientnet_b0 "
        "efficientnet_v2_s regnet_x_400mf regnet_y_400mf shufflenet_v2_x0_5 convnext_tiny "
        "vit_b_16 swin_t swin_v2_t maxvit_t"
    )
    return [f"torchvision:{name}" for name in names.split()]


_Table = Mapping[str, tuple[tuple[int, ...], dict[str, Any]]]
_SMALL_BOXES = {"min_size": 128, "max_size": 160}

#: By family and name, the shape of an image and arguments that keep the network small.
_TORCHVISION: Mapping[str, _Table] = {
    "torchvision segmentation": {
        "fcn_resnet50": ((3, 128, 128), {"aux_loss": False}),
        "deeplabv3_mobilenet_v3_large": ((3, 128, 128), {"aux_loss": False}),
        "lraspp_mobilenet_v3_large": ((3, 128, 128), {}),
    },
    "torchvision detection": {
        "fasterrcnn_mobilenet_v3_large_320_fpn": ((3, 128, 128), _SMALL_BOXES),
        "maskrcnn_resnet50_fpn": ((3, 128, 128), _SMALL_BOXES),
        "keypointrcnn_resnet50_fpn": ((3, 128, 128), _SMALL_BOXES),
        # Its group normalisation of one channel a group needs more than one position.
        "fcos_resnet50_fpn": ((3, 256, 256), {"min_size": 256, "max_size": 320}),
        "retinanet_resnet50_fpn": ((3, 128, 128), _SMALL_BOXES),
        "ssd300_vgg16": ((3, 300, 300), {}),
        "ssdlite320_mobilenet_v3_large": ((3, 320, 320), {}),
    },
    "torchvision video": {
        "r3d_18": ((3, 8, 56, 56), {}),
        "mc3_18": ((3, 8, 56, 56), {}),
        "r2plus1d_18": ((3, 8, 56, 56), {}),
        "s3d": ((3, 16, 224, 224), {}),
        "mvit_v1_b": ((3, 16, 224, 224), {}),
        "swin3d_t": ((3, 8, 64, 64), {}),
    },
}


def _torchvision(family: str, name: str, shape: tuple[int, ...], kwargs: dict[str, Any]) -> Case:
    def build() -> nn.Module:
        module = load_torchvision().models
        if family.endswith("detection"):
            _supply_nms()
        backbone = {} if family.endswith("video") else {"weights_backbone": None}
        model: nn.Module = module.get_model(name, weights=None, **backbone, **kwargs)
        return model.eval()

    def inputs(model: nn.Module) -> Tensor | Inputs:
        image = images(*shape)
        return ([image[0].sigmoid()],) if family.endswith("detection") else image

    return Case(f"torchvision:{name}", family, build, inputs)


def _supply_nms() -> None:
    """Let detection run where torchvision's compiled part does not load: Python's suppression."""
    from torchvision.extension import _has_ops
    from torchvision.ops import boxes

    if not _has_ops():
        boxes.nms = _nms


def _nms(corners: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the boxes that overlap no better one by more than the threshold, best first."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True)
    overlap = box_iou(corners[order], corners[order]) > iou_threshold
    kept: list[int] = []
    for index in range(len(order)):
        if not overlap[index, kept].any():
            kept.append(index)
    return order[torch.tensor(kept, dtype=torch.long)]


_SMALL = ("atto", "femto", "pico", "nano", "tiny", "xxs", "_xs", "small", "_s", "18", "26", "b0")


@functools.cache
def _timm() -> list[str]:
    """Return one small model of every module of ``timm.models``."""
    timm_names()
    from timm.models import _registry

    specs = []
    for module in sorted(_registry._module_to_models):
        names = sorted(_registry._module_to_models[module])
        hinted = [n for hint in _SMALL for n in names if hint in n]
        shortlist = list(dict.fromkeys([*hinted[:4], *names[:2]]))
        specs.append(f"timm:{min(shortlist, key=_size)}")
    return specs


def _size(name: str) -> float:
    try:
        with torch.device("meta"):
            model = ModelSource.parse(f"timm:{name}").build()
    except (AutopruneError, RuntimeError, NotImplementedError):
        return float("inf")
    return sum(parameter.numel() for parameter in model.parameters())


def _text() -> Inputs:
    return {"input_ids": tokens()}


def _picture() -> Inputs:
    return {"pixel_values": images(3, 32, 32)}


_BERT = {
    "vocab_size": 160,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "use_cache": False}
_PATCHES = {**_BERT, "image_size": 32, "patch_size": 8}
_VIT = {key: value for key, value in _PATCHES.items() if key != "vocab_size"}
_T5 = {"vocab_size": 160, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_WHISPER = {
    "vocab_size": 160,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_mel_bins": 16,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}

#: By name: model class, configuration class, inputs and a small configuration.
_HUGGING_FACE: Mapping[str, tuple[str, str, Callable[[], Inputs], dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _text, _BERT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _text,
        {"vocab_size": 160, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        _text,
        {"vocab_size": 160, "n_embd": 64, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _text, _LLAMA),
    "mistral": ("MistralForCausalLM", "MistralConfig", _text, _LLAMA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _text, _LLAMA),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _text, {**_LLAMA, "head_dim": 16}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _text, {**_LLAMA, "num_local_experts": 4}),
    "vit": ("ViTForImageClassification", "ViTConfig", _picture, _VIT),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _picture, _VIT),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        _picture,
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        lambda: {**_text(), **_picture()},
        {
            "text_config": {**_BERT, "max_position_embeddings": 32},
            "vision_config": _VIT,
            "projection_dim": 32,
        },
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        lambda: {"input_features": images(16, 40), "decoder_input_ids": tokens(8)},
        _WHISPER,
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        lambda: {**_text(), "decoder_input_ids": tokens(8)},
        {**_T5, "use_cache": False},
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        _text,
        {"vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 2, "use_cache": False},
    ),
}


def _transformer(model: str, config: str, options: dict[str, Any]) -> nn.Module:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    load_torchvision()  # transformers imports it, which fails beside a torch of another build
    import transformers

    made = getattr(transformers, config)(**options)
    built: nn.Module = getattr(transformers, model)(made)
    return built.eval()


#: By name, a network of `autoprune.testing.architectures` and its inputs.
_OWN: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "U-Net": (lambda: UNet(widths=(16, 32, 64, 128)), lambda: (images(3, 64, 64),)),
    "diffusion U-Net": (
        lambda: DiffusionUNet(widths=(32, 64), blocks=2),
        lambda: (images(3, 32, 32), torch.tensor([7])),
    ),
    "LSTM classifier": (
        lambda: RecurrentClassifier(nn.LSTM, width=64),
        lambda: (tokens(words=50),),
    ),
    "GRU classifier": (lambda: RecurrentClassifier(nn.GRU, width=64), lambda: (tokens(words=50),)),
}
