"""Tiny networks, one per way in which channels are coupled, with their groups written by hand.

They run in milliseconds, and the hand-written groups are an oracle for the tracer as well as a way
to test criteria and surgery without it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from autoprune.errors import UnknownNameError
from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.network.network import Network
from autoprune.network.ops import OpTable

#: Classes that every tiny network tells apart.
CLASSES = 5

#: Shape of an example batch.
INPUT_SHAPE = (2, 3, 8, 8)

#: Different tokens of the language model, and the shape of an example batch of them.
VOCABULARY, TOKENS_SHAPE = 11, (2, 8)


@dataclasses.dataclass(frozen=True)
class TinyNetwork:
    """A model of a few layers and what is known about it.

    Attributes:
        name: Its name in :data:`TINY_NETWORKS` or :data:`TINY_LANGUAGE_MODELS`.
        model: In eval mode, every parameter and statistic random.
        inputs: One example batch.
        groups: Its channel groups, written by hand.
    """

    name: str
    model: nn.Module
    inputs: tuple[Shaped[Tensor, "..."]]
    groups: tuple[ChannelGroup, ...]

    @property
    def network(self) -> Network:
        """The model with its hand-written groups, without blocks and operators."""
        sizes = tuple(group.size for group in self.groups)
        return Network(
            model=self.model,
            inputs=self.inputs,
            groups=self.groups,
            blocks=(),
            ops=OpTable((), (), sizes, 0),
            frozen={},
            unsupported=Counter(),
        )

    def batches(
        self, *sizes: int, seed: int = 0
    ) -> list[tuple[Shaped[Tensor, "..."], Int[Tensor, "..."]]]:
        """Return random labelled batches with the given numbers of images or sequences."""
        generator = torch.Generator().manual_seed(seed)
        dtype = self.inputs[0].dtype
        return [
            (
                torch.randn(size, *INPUT_SHAPE[1:], generator=generator).to(dtype),
                torch.randint(CLASSES, (size,), generator=generator),
            )
            for size in sizes
        ]

    def heard(
        self, group: ChannelGroup, batches: Sequence[tuple[Tensor, Tensor]]
    ) -> list[HeardInput]:
        """Return what every weight that reads ``group`` gets, as forward hooks see it."""
        found = []
        for member in group.members:
            if member.dim != 1:  # in these networks all weights that read do so by dimension 1
                continue
            module = self.model.get_submodule(member.path.rpartition(".")[0])
            inputs: list[Tensor] = []
            hook = module.register_forward_pre_hook(
                lambda _, args, inputs=inputs: inputs.append(args[0].detach().clone())
            )
            with torch.no_grad():
                for images, _ in batches:
                    self.model(images)
            hook.remove()
            found.append(HeardInput(member, module, torch.cat(inputs)))
        return found


class TinyLanguageModel(TinyNetwork):
    """A network that reads tokens and tells the next of each."""

    def batches(
        self, *sizes: int, seed: int = 0
    ) -> list[tuple[Shaped[Tensor, "..."], Int[Tensor, "..."]]]:
        """Return batches of random tokens with what follows each, of so many sequences."""
        generator = torch.Generator().manual_seed(seed)
        length = TOKENS_SHAPE[1] + 1
        texts = (torch.randint(VOCABULARY, (n, length), generator=generator) for n in sizes)
        return [(tokens[:, :-1], tokens[:, 1:].contiguous()) for tokens in texts]


@dataclasses.dataclass(frozen=True)
class HeardInput:
    """What one weight of a tiny network reads.

    Attributes:
        member: Where its units are.
        module: A convolution or a linear layer.
        inputs: All of its inputs.
    """

    member: ParamSlice
    module: nn.Module
    inputs: Float[Tensor, "..."]

    @property
    def weight(self) -> Float[Tensor, "..."]:
        """The weight that reads."""
        weight: Tensor = self.module.get_parameter("weight").detach()
        return weight

    @property
    def conv_groups(self) -> int:
        """Groups of the convolution, 1 for a linear layer."""
        return self.module.groups if isinstance(self.module, nn.Conv2d) else 1

    @property
    def values(self) -> Float[Tensor, "batch channels positions"]:
        """The inputs with everything but the sample and the channel as positions."""
        channels = 1 if isinstance(self.module, nn.Conv2d) else -1
        return self.inputs.movedim(channels, 1).reshape(*self.shape, -1)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and channels."""
        channels = 1 if isinstance(self.module, nn.Conv2d) else -1
        return self.inputs.shape[0], self.inputs.shape[channels]

    def channels(self, unit: int) -> list[tuple[int, int, int]]:
        """Return channel, group of the convolution, and position in the weight, of a unit."""
        width = self.weight.shape[1]
        return [
            (group * width + int(place), group, int(place))
            for group in range(self.conv_groups)
            for place in self.member.indices[unit]
        ]

    def readers(self, group: int) -> Float[Tensor, "..."]:
        """Return the weights of one group of the convolution."""
        return self.weight.chunk(self.conv_groups)[group]


def tiny(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> TinyNetwork:
    """Return the tiny network called ``name``; the global random state stays as it is.

    Args:
        name: A name in :data:`TINY_NETWORKS` or :data:`TINY_LANGUAGE_MODELS`.
        seed: Determines every parameter, statistic and input.
        dtype: Of parameters, statistics and inputs.

    Raises:
        UnknownNameError: No such network.
    """
    everyone = TINY_NETWORKS | TINY_LANGUAGE_MODELS
    if name not in everyone:
        raise UnknownNameError("tiny network", name, everyone)
    build, groups = everyone[name]
    with torch.random.fork_rng(devices=[]):
        model = build()
    generator = torch.Generator().manual_seed(seed)
    _randomise(model, generator)
    if name in TINY_LANGUAGE_MODELS:
        tokens = torch.randint(VOCABULARY, TOKENS_SHAPE, generator=generator)
        return TinyLanguageModel(name, model.to(dtype).eval(), (tokens,), groups())
    inputs = torch.randn(INPUT_SHAPE, generator=generator).to(dtype)
    return TinyNetwork(name, model.to(dtype).eval(), (inputs,), groups())


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Fill every parameter and statistic with numbers that keep activations near unit size."""
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            offset = 0.0 if parameter.ndim > 1 else 0.5
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(offset + scale * noise)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def _member(
    path: str, dim: int, units: int, *, per_unit: int = 1, stride: int = 1, start: int = 0
) -> ParamSlice:
    """Return a slice with position ``start + u * (per_unit if stride == 1 else 1) + k * stride``.

    Args:
        path: Parameter or buffer.
        dim: The dimension that is cut.
        units: Units of the group.
        per_unit: Positions of one unit.
        stride: Distance of a unit's positions; 1 makes them neighbours.
        start: First position.
    """
    unit = np.arange(units)[:, None] * (per_unit if stride == 1 else 1)
    return ParamSlice(path, dim, start + unit + np.arange(per_unit) * stride)


def _norm(path: str, units: int, **where: int) -> list[ParamSlice]:
    """Return the slices of a BatchNorm's parameters and running statistics."""
    names = ("weight", "bias", "running_mean", "running_var")
    return [_member(f"{path}.{name}", 0, units, **where) for name in names]


def _group(name: str, size: int, *members: ParamSlice | Sequence[ParamSlice]) -> ChannelGroup:
    flat = [m for item in members for m in ([item] if isinstance(item, ParamSlice) else item)]
    return ChannelGroup(name, size, tuple(flat))


def _conv_norm(cin: int, cout: int, kernel: int = 3, *, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout)]


def _head(channels: int) -> nn.Module:
    """Return global pooling and a linear classifier; its weight is ``head.2.weight``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def _sequential(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _chain() -> nn.Module:
    first, norm1 = _conv_norm(3, 8)
    second, norm2 = _conv_norm(8, 6)
    return _sequential(
        conv1=first,
        norm1=norm1,
        relu1=nn.ReLU(),
        conv2=second,
        norm2=norm2,
        relu2=nn.ReLU(),
        head=_head(6),
    )


def _chain_groups() -> tuple[ChannelGroup, ...]:
    return (
        _group(
            "conv1",
            8,
            _member("conv1.weight", 0, 8),
            _norm("norm1", 8),
            _member("conv2.weight", 1, 8),
        ),
        _group(
            "conv2",
            6,
            _member("conv2.weight", 0, 6),
            _norm("norm2", 6),
            _member("head.2.weight", 1, 6),
        ),
    )


class Residual(nn.Module):
    """Two residual branches: a bottleneck, and a square layer that reads and writes the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = _conv_norm(3, 8)
        self.reduce, self.reduce_norm = _conv_norm(8, 4)
        self.expand, self.expand_norm = _conv_norm(4, 8)
        self.square = nn.Conv2d(8, 8, 1)
        self.head = _head(8)

    def forward(self, images: Float[Tensor, "batch 3 8 8"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        stream = self.stem_norm(self.stem(images)).relu()
        inner = self.reduce_norm(self.reduce(stream)).relu()
        stream = (stream + self.expand_norm(self.expand(inner))).relu()
        stream = stream + self.square(stream)
        logits: Tensor = self.head(stream)
        return logits


def _residual_groups() -> tuple[ChannelGroup, ...]:
    return (
        _group(
            "stem",
            8,
            _member("stem.weight", 0, 8),
            _norm("stem_norm", 8),
            _member("reduce.weight", 1, 8),
            _member("expand.weight", 0, 8),
            _norm("expand_norm", 8),
            _member("square.weight", 0, 8),
            _member("square.weight", 1, 8),
            _member("square.bias", 0, 8),
            _member("head.2.weight", 1, 8),
        ),
        _group(
            "reduce",
            4,
            _member("reduce.weight", 0, 4),
            _norm("reduce_norm", 4),
            _member("expand.weight", 1, 4),
        ),
    )


class Concatenation(nn.Module):
    """Two branches side by side, normalised and read together."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.merge, self.merge_norm = _conv_norm(10, 7)
        self.head = _head(7)

    def forward(self, images: Float[Tensor, "batch 3 8 8"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        both = torch.cat([self.left(images), self.right(images)], dim=1)
        merged = self.merge_norm(self.merge(self.norm(both).relu())).relu()
        logits: Tensor = self.head(merged)
        return logits


def _concatenation_groups() -> tuple[ChannelGroup, ...]:
    def branch(name: str, size: int, start: int) -> ChannelGroup:
        return _group(
            name,
            size,
            _member(f"{name}.weight", 0, size),
            _member(f"{name}.bias", 0, size),
            _norm("norm", size, start=start),
            _member("merge.weight", 1, size, start=start),
        )

    merge = _group(
        "merge",
        7,
        _member("merge.weight", 0, 7),
        _norm("merge_norm", 7),
        _member("head.2.weight", 1, 7),
    )
    return branch("left", 4, 0), branch("right", 6, 4), merge


def _depthwise() -> nn.Module:
    widen, widen_norm = _conv_norm(3, 8, 1)
    depth, depth_norm = _conv_norm(8, 8, groups=8)
    project, project_norm = _conv_norm(8, 6, 1)
    return _sequential(
        widen=widen,
        widen_norm=widen_norm,
        relu1=nn.ReLU6(),
        depth=depth,
        depth_norm=depth_norm,
        relu2=nn.ReLU6(),
        project=project,
        project_norm=project_norm,
        head=_head(6),
    )


def _depthwise_groups() -> tuple[ChannelGroup, ...]:
    return (
        _group(
            "widen",
            8,
            _member("widen.weight", 0, 8),
            _norm("widen_norm", 8),
            _member("depth.weight", 0, 8),
            _norm("depth_norm", 8),
            _member("project.weight", 1, 8),
        ),
        _group(
            "project",
            6,
            _member("project.weight", 0, 6),
            _norm("project_norm", 6),
            _member("head.2.weight", 1, 6),
        ),
    )


def _grouped() -> nn.Module:
    first, norm1 = _conv_norm(3, 8)
    second, norm2 = _conv_norm(8, 12, groups=4)
    return _sequential(
        conv1=first,
        norm1=norm1,
        relu1=nn.ReLU(),
        conv2=second,
        norm2=norm2,
        relu2=nn.ReLU(),
        head=_head(12),
    )


def _grouped_groups() -> tuple[ChannelGroup, ...]:
    # Four groups of a convolution stay equal: unit j is channel j of each.
    return (
        _group(
            "conv1",
            2,
            _member("conv1.weight", 0, 2, per_unit=4, stride=2),
            _norm("norm1", 2, per_unit=4, stride=2),
            _member("conv2.weight", 1, 2),
        ),
        _group(
            "conv2",
            3,
            _member("conv2.weight", 0, 3, per_unit=4, stride=3),
            _norm("norm2", 3, per_unit=4, stride=3),
            _member("head.2.weight", 1, 3, per_unit=4, stride=3),
        ),
    )


def _flatten() -> nn.Module:
    conv, norm = _conv_norm(3, 4)
    return _sequential(
        conv=conv,
        norm=norm,
        relu1=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        hidden=nn.Linear(64, 7),
        relu2=nn.ReLU(),
        output=nn.Linear(7, CLASSES),
    )


def _flatten_groups() -> tuple[ChannelGroup, ...]:
    return (
        _group(
            "conv",
            4,
            _member("conv.weight", 0, 4),
            _norm("norm", 4),
            _member("hidden.weight", 1, 4, per_unit=16),
        ),
        _group(
            "hidden",
            7,
            _member("hidden.weight", 0, 7),
            _member("hidden.bias", 0, 7),
            _member("output.weight", 1, 7),
        ),
    )


class Attention(nn.Module):
    """One transformer layer over four patches: three heads, GELU, and a normalised stream."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.norm1 = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 36)
        self.project = nn.Linear(12, 8)
        self.norm2 = nn.LayerNorm(8)
        self.widen = nn.Linear(8, 10)
        self.narrow = nn.Linear(10, 8)
        self.norm3 = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Float[Tensor, "batch 3 8 8"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        stream = self.patch(images).flatten(2).transpose(1, 2)
        batch, tokens, _ = stream.shape
        rows = self.qkv(self.norm1(stream)).reshape(batch, tokens, 3, -1, 4)
        query, key, value = rows.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        stream = stream + self.project(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        stream = stream + self.narrow(F.gelu(self.widen(self.norm2(stream))))
        logits: Tensor = self.head(self.norm3(stream).mean(1))
        return logits


def _attention_groups() -> tuple[ChannelGroup, ...]:
    def affine(path: str, units: int) -> list[ParamSlice]:
        return [_member(f"{path}.{name}", 0, units) for name in ("weight", "bias")]

    stream = _group(
        "patch",
        8,
        affine("patch", 8),
        affine("norm1", 8),
        _member("qkv.weight", 1, 8),
        affine("project", 8),
        affine("norm2", 8),
        _member("widen.weight", 1, 8),
        affine("narrow", 8),
        affine("norm3", 8),
        _member("head.weight", 1, 8),
    )
    # A head is four rows of each, queries, keys and values.
    rows = 12 * np.arange(3)[:, None] + np.arange(4)
    of_heads = np.stack([(rows + 4 * head).ravel() for head in range(3)])
    heads = _group(
        "qkv",
        3,
        ParamSlice("qkv.weight", 0, of_heads),
        ParamSlice("qkv.bias", 0, of_heads),
        ParamSlice("project.weight", 1, np.arange(12).reshape(3, 4)),
    )
    hidden = _group("widen", 10, affine("widen", 10), _member("narrow.weight", 1, 10))
    return (
        dataclasses.replace(stream, mixed=True),
        dataclasses.replace(heads, kind="head"),
        hidden,
    )


class Language(nn.Module):
    """One layer of a language model.

    Two heads of queries share one of keys and values, neighbouring rows are rotated by their
    position, the perceptron has a gate, and the table of tokens is the output's weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.norm1 = nn.RMSNorm(8)
        self.query = nn.Linear(8, 24, bias=False)
        self.key = nn.Linear(8, 12, bias=False)
        self.value = nn.Linear(8, 12, bias=False)
        self.project = nn.Linear(24, 8, bias=False)
        self.norm2 = nn.RMSNorm(8)
        self.gate = nn.Linear(8, 10, bias=False)
        self.widen = nn.Linear(8, 10, bias=False)
        self.narrow = nn.Linear(10, 8, bias=False)
        self.norm3 = nn.RMSNorm(8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Int[Tensor, "batch t"]) -> Float[Tensor, "batch t vocabulary"]:
        """Return the logits of what follows each token."""
        stream = self.table(tokens)
        inner = self.norm1(stream)
        query, key, value = (
            layer(inner).unflatten(-1, (-1, 4)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(
            _rotated(query), _rotated(key), value, is_causal=True, enable_gqa=True
        )
        stream = stream + self.project(mixed.transpose(1, 2).flatten(-2))
        inner = self.norm2(stream)
        stream = stream + self.narrow(F.silu(self.gate(inner)) * self.widen(inner))
        logits: Tensor = self.head(self.norm3(stream))
        return logits


def _rotated(rows: Float[Tensor, "batch heads t 4"]) -> Float[Tensor, "batch heads t 4"]:
    """Return rows with the pairs (0, 1) and (2, 3) turned by an angle per position."""
    angles = torch.arange(rows.shape[2], dtype=rows.dtype)[:, None] * torch.tensor([1.0, 0.1])
    cos, sin = angles.cos().to(rows.dtype), angles.sin().to(rows.dtype)
    even, odd = rows[..., 0::2], rows[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _language_groups() -> tuple[ChannelGroup, ...]:
    stream = _group(
        "norm1",
        8,
        _member("table.weight", 1, 8),
        [_member(f"{name}.weight", 1, 8) for name in ("query", "key", "value", "gate", "widen")],
        [_member(f"{name}.weight", 0, 8) for name in ("project", "narrow")],
        [_member(f"norm{number}.weight", 0, 8) for number in (1, 2, 3)],
    )
    heads = _group(
        "query",
        3,
        _member("query.weight", 0, 3, per_unit=8),
        _member("key.weight", 0, 3, per_unit=4),
        _member("value.weight", 0, 3, per_unit=4),
        _member("project.weight", 1, 3, per_unit=8),
    )
    hidden = _group(
        "gate",
        10,
        _member("gate.weight", 0, 10),
        _member("widen.weight", 0, 10),
        _member("narrow.weight", 1, 10),
    )
    return (
        dataclasses.replace(stream, mixed=True),
        dataclasses.replace(heads, kind="head"),
        hidden,
    )


_Described = tuple[Callable[[], nn.Module], Callable[[], tuple[ChannelGroup, ...]]]

#: Every tiny network of images: how its model is built, and its groups.
TINY_NETWORKS: dict[str, _Described] = {
    "chain": (_chain, _chain_groups),
    "residual": (Residual, _residual_groups),
    "concatenation": (Concatenation, _concatenation_groups),
    "depthwise": (_depthwise, _depthwise_groups),
    "grouped": (_grouped, _grouped_groups),
    "flatten": (_flatten, _flatten_groups),
    "attention": (Attention, _attention_groups),
}

#: Likewise, networks that read tokens.
TINY_LANGUAGE_MODELS: dict[str, _Described] = {"language": (Language, _language_groups)}
