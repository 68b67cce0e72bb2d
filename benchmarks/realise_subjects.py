"""Networks with trained weights that realisations and criteria are compared on.

Each subject is a network, calibration data without the samples it is scored on, which groups are
cut and how far, and a score. All but the embedded digits need the folder of checkpoints and data
that `AUTOPRUNE_SHARED` names. `python benchmarks/realise_subjects.py [NAME ...]` prints what the
unpruned networks score.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.network.network import Network
from autoprune.network.source import ModelSource, load_weights
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.tasks.base import SampledTask, classification_score, run_batches
from autoprune.tasks.cifar10 import cifar10
from autoprune.tasks.classification import ArraySamples, ClassificationTask
from autoprune.tasks.digits import digits
from autoprune.tasks.language import IGNORED, LanguageTask, token_scores

#: Where the checkpoints and data are unless told otherwise.
SHARED = Path(os.environ.get("AUTOPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


class Calibrates(Protocol):
    """What a subject needs of a task."""

    def calibration(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches of inputs and targets that no score uses."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and how it is cut and scored.

    Attributes:
        name: Its name in :data:`SUBJECTS`.
        model: In evaluation mode, with trained weights.
        network: The model, traced.
        task: Has ``calibration(samples)``, disjoint from what ``score`` uses.
        widths: Units that stay of each group that is cut, by its name.
        metric: ``"accuracy"`` (percent, top 1) or ``"perplexity"``.
        measure: Returns the metric of a network on the first samples, on all where it gets
            ``None``.
    """

    name: str
    model: nn.Module
    network: Network
    task: Calibrates
    widths: Mapping[str, int]
    metric: str
    measure: Callable[[nn.Module, int | None], float]

    def plan_for(self, scores: Mapping[str, Float[np.ndarray, " _"]]) -> PruningPlan:
        """Return the plan that keeps the units of highest score in every group that is cut."""
        return PruningPlan(
            {
                name: tuple(sorted(np.argsort(-scores[name], kind="stable")[:width].tolist()))
                for name, width in self.widths.items()
            }
        )

    def score(self, module: nn.Module, *, tested: int | None = None) -> dict[str, str | float]:
        """Return the metric and its value.

        Args:
            module: A pruned version of the model, or itself.
            tested: Most samples it is scored on; ``None`` takes all.
        """
        return {"metric": self.metric, "value": self.measure(module, tested)}


def load_subject(name: str, shared: Path = SHARED) -> Subject:
    """Return the subject called ``name``; nothing of it was loaded before.

    Args:
        name: A key of :data:`SUBJECTS`.
        shared: Folder that holds ``bench_data``.
    """
    return SUBJECTS[name](name, shared / "bench_data")


def _subject(
    name: str,
    model: nn.Module,
    task: SampledTask,
    cut: Callable[[str, int], int],
    measure: Callable[[nn.Module, int | None], float],
    metric: str = "accuracy",
) -> Subject:
    """Return a subject whose groups keep ``cut(name, size)`` units."""
    network = trace(model, task.example_inputs())
    widths = {group.name: cut(group.name, group.size) for group in network.groups}
    sizes = {group.name: group.size for group in network.groups}
    chosen = {group: width for group, width in widths.items() if width < sizes[group]}
    return Subject(name, model, network, task, chosen, metric, measure)


def _built(call: str, data: Path, weights: str) -> nn.Module:
    """Return a network of ``networks.py`` with its checkpoint."""
    source = ModelSource.parse(f"{data / 'networks.py'}:{call}", weights=data / weights)
    return source.build().to(memory_format=torch.channels_last)


def _accuracy(task: ClassificationTask) -> Callable[[nn.Module, int | None], float]:
    """Return what gives the percentage of the first test images that a network gets right."""

    def measure(module: nn.Module, tested: int | None) -> float:
        count = min(tested or len(task.test), len(task.test))
        batches = (
            (images.contiguous(memory_format=torch.channels_last), labels)
            for images, labels in task.batches("test", 0, count)
        )
        return 100 * classification_score(module, batches, classes=task.classes).accuracy

    return measure


def _inner_half(group: str, size: int) -> int:
    """Keep half of what is between the two convolutions of a block."""
    return size // 2 if group.endswith(".conv1") else size


def _half(group: str, size: int) -> int:
    return size // 2


def _cifar_resnet(name: str, data: Path) -> Subject:
    depth = name.rpartition("-")[2]
    model = _built(f"cifar_resnet({depth})", data, f"cifar10_resnet{depth}.safetensors")
    task = cifar10(str(data), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return _subject(name, model, task, _inner_half, _accuracy(task))


def _resnet8(name: str, data: Path) -> Subject:
    model = _built("ResNet8", data, "cifar10_resnet8.safetensors")
    task = cifar10(str(data), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    return _subject(name, model, task, _half, _accuracy(task))


def _digits(name: str, data: Path) -> Subject:
    task = digits(batch=1)
    return _subject(name, ModelSource.parse("digits").build(), task, _inner_half, _accuracy(task))


def _mobilenet_v1(name: str, data: Path) -> Subject:
    model = _built("TFMobileNetV1(0.5)", data, "imagenet_mobilenetv1_0.5_160.safetensors")
    task = imagenet_sample(data / "imagenet_sample.npz", 160)
    # With half of every group, ranked by l2, none of 96 images is right however it is repaired.
    last = f"features.{len(model.features) - 1}.0"
    return _subject(
        name,
        model,
        task,
        lambda group, size: size if group == last else size * 3 // 4,
        _accuracy(task),
    )


def _mobilenet_v2(name: str, data: Path) -> Subject:
    model = _built("TFMobileNetV2(1.0)", data, "imagenet_mobilenetv2_1.0_224.safetensors")
    task = imagenet_sample(data / "imagenet_sample.npz", 224)
    # With half of them, ranked by activation, slicing gets none of 96 images right, merging two.
    return _subject(
        name,
        model,
        task,
        lambda group, size: size * 3 // 4 if ".expand." in group else size,
        _accuracy(task),
    )


def imagenet_sample(file: Path, size: int, *, calibration: int = 512) -> ClassificationTask:
    """Return the task of a thousand ImageNet images, one per class, 256x256 JPEGs.

    ``calibration`` of them, drawn once and for all, are the training split, the others both the
    search and the test split. The pixels of 224x224 networks are the images' centre; for others
    the image is resized. Networks look up to 17 points too good on them.

    Args:
        file: Arrays ``jpeg`` (bytes of all files), ``offsets`` and ``label``.
        size: Height and width of the input.
        calibration: Images of the training split.
    """
    arrays = np.load(file)
    bounds, blob = arrays["offsets"], arrays["jpeg"]
    pixels = np.stack(
        [_decoded(blob[start:stop].tobytes(), size) for start, stop in itertools.pairwise(bounds)]
    )
    labels = arrays["label"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    training, test = (
        ArraySamples(pixels[part], labels[part], mean=(127.5,) * 3, std=(127.5,) * 3)
        for part in (order[:calibration], order[calibration:])
    )
    return ClassificationTask(
        "ImageNet sample",
        1000,
        training=training,
        search=test,
        test=test,
        evaluation_batch=32,
    )


def _decoded(jpeg: bytes, size: int) -> UInt8[np.ndarray, "3 size size"]:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as file:
        image = file.convert("RGB")
    if size == 224:
        image = image.crop((16, 16, 240, 240))
    else:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _stories(name: str, data: Path) -> Subject:
    model = Llama()
    load_weights(model, data / "stories260K.safetensors")
    task = stories(data)

    def cut(group: str, size: int) -> int:
        return size * 3 // 4 if group.endswith((".attn.wq", ".w1")) else size

    def measure(module: nn.Module, tested: int | None) -> float:
        count = min(tested or task.samples("test"), task.samples("test"))
        return perplexity(module, task.batches("test", 0, count))

    return _subject(name, model.eval(), task, cut, measure, "perplexity")


def perplexity(module: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Return the exponential of the mean cross-entropy over all tokens."""
    parts = run_batches(
        module,
        batches,
        lambda outputs, targets: (
            float(token_scores(outputs, targets)[0].double().sum()),
            int((targets != IGNORED).sum()),
        ),
    )
    losses, tokens = zip(*parts, strict=True)
    return math.exp(sum(losses) / sum(tokens))


class Llama(nn.Module):
    """The network of stories260K, after Touvron et al., LLaMA, 2023, and Ainslie et al., GQA, 2023.

    Queries have eight heads of width 8, keys and values four that two of them share. Neighbouring
    rows are the pairs that positions rotate, and the embedding is the output's weight.
    """

    def __init__(
        self, *, width: int = 64, hidden: int = 172, layers: int = 5, tokens: int = 512
    ) -> None:
        """Build it with random weights."""
        super().__init__()
        self.emb = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(LlamaLayer(width, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t vocabulary"]:
        """Return the logits of the token that follows each."""
        stream = self.emb(tokens)
        for layer in self.layers:
            stream = layer(stream)
        return F.linear(self.norm(stream), self.emb.weight)


class LlamaLayer(nn.Module):
    """Grouped-query attention, then a gated multi-layer perceptron."""

    def __init__(self, width: int, hidden: int) -> None:
        """Build it with random weights."""
        super().__init__()
        self.attn = LlamaAttention(width)
        self.n1, self.n2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, stream: Float[Tensor, "n t width"]) -> Float[Tensor, "n t width"]:
        """Return the stream with what both parts add."""
        stream = stream + self.attn(self.n1(stream))
        inner = self.n2(stream)
        return stream + self.w2(F.silu(self.w1(inner)) * self.w3(inner))


class LlamaAttention(nn.Module):
    """Causal attention with rotary positions, two heads of queries per head of keys and values."""

    head = 8

    def __init__(self, width: int) -> None:
        """Build it with random weights."""
        super().__init__()
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, width // 2, bias=False)
        self.wv = nn.Linear(width, width // 2, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x: Float[Tensor, "n t width"]) -> Float[Tensor, "n t width"]:
        """Return what each token gathers from those before it and itself."""
        query, key, value = (
            weight(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for weight in (self.wq, self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(
            _rotated(query), _rotated(key), value, is_causal=True, enable_gqa=True
        )
        return self.wo(mixed.transpose(1, 2).flatten(-2))


def _rotated(x: Float[Tensor, "n heads t head"]) -> Float[Tensor, "n heads t head"]:
    """Return ``x`` with the pairs (2i, 2i + 1) turned by their position."""
    length, width = x.shape[-2:]
    rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def stories(data: Path) -> LanguageTask:
    """Return the task of nineteen stories: ten to calibrate with, nine to score on.

    Calibration stories follow each other in sequences of 256 tokens; what is scored are the first
    512 tokens of each story, alone. The same story is never on both sides.

    Args:
        data: Folder with the text and the tokenizer.
    """
    tokenizer = Tokenizer.read(data / "stories260K_tok512.bin")
    text = (data / "tinystories_valid_30k.txt").read_text(encoding="utf-8")
    found = [tokenizer.encode(line) for line in text.splitlines()]
    packed = np.concatenate(found[:10])
    scored = np.full((len(found) - 10, 512), IGNORED)
    for row, tokens in zip(scored, found[10:], strict=True):
        row[: len(tokens)] = tokens[:512]
    training = packed[: len(packed) // 256 * 256].reshape(-1, 256)
    return LanguageTask("stories", training=training, search=scored, test=scored)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Byte-pair merging by highest score.

    Attributes:
        pieces: The bytes of each token.
        scores: Of each token; of two possible merges the one with the higher score is made.
    """

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]

    #: Token that a story begins with, and the token of byte 0.
    FIRST, BYTES = 1, 3

    @classmethod
    def read(cls, file: Path) -> Tokenizer:
        """Return the tokenizer of a file: after 4 bytes, score, length and bytes of each token."""
        raw = file.read_bytes()
        place, pieces, scores = 4, [], []
        while place < len(raw):
            score, length = struct.unpack_from("<fi", raw, place)
            place += 8 + length
            scores.append(score)
            pieces.append(raw[place - length : place])
        return cls(tuple(pieces), tuple(scores))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a story."""
        known = {piece: token for token, piece in enumerate(self.pieces)}
        tokens: list[int] = []
        for letter in f" {text}":
            raw = letter.encode()
            tokens += [known[raw]] if raw in known else [byte + self.BYTES for byte in raw]
        for _ in range(len(tokens)):
            merges = [
                (self.scores[known[joined]], -place, known[joined])
                for place, (left, right) in enumerate(itertools.pairwise(tokens))
                if (joined := self.pieces[left] + self.pieces[right]) in known
            ]
            if not merges:
                break
            _, place, token = max(merges)
            tokens[-place : -place + 2] = [token]
        return [self.FIRST, *tokens]


#: Every subject by name: what loads it from the folder of checkpoints and data.
SUBJECTS: dict[str, Callable[[str, Path], Subject]] = {
    "ResNet-56": _cifar_resnet,
    "ResNet-20": _cifar_resnet,
    "ResNet-8": _resnet8,
    "MobileNetV1-0.5": _mobilenet_v1,
    "MobileNetV2-1.0": _mobilenet_v2,
    "digits": _digits,
    "stories260K": _stories,
}


def main() -> None:
    """Print what unpruned networks score and what of them is cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--shared", type=Path, default=SHARED)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        subject = load_subject(name, options.shared)
        value = subject.score(subject.model)["value"]
        groups = {group.name: group.size for group in subject.network.groups}
        cut = ", ".join(f"{g} {w}/{groups[g]}" for g, w in subject.widths.items())
        print(f"{name}: {subject.metric} {value:.2f}; {len(groups)} groups; {cut}", flush=True)


if __name__ == "__main__":
    main()
