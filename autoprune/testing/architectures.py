"""Small networks of the kinds that model collections lack: U-Nets, diffusion, recurrent layers.

Each is the textbook form of its kind with widths as arguments, so that tests take seconds and
benchmarks can take them larger.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class UNet(nn.Module):
    """Segmentation with skip concatenations; transposed convolutions double the size again."""

    def __init__(
        self, channels: int = 3, classes: int = 2, *, widths: Sequence[int] = (8, 16, 32)
    ) -> None:
        """Build it.

        Args:
            channels: Of the image.
            classes: Told apart at every position.
            widths: Channels of each level, from the full size down; every level halves the size.
        """
        super().__init__()
        levels = list(itertools.pairwise(widths))
        self.stem = _twice(channels, widths[0])
        self.down = nn.ModuleList(_twice(wide, deeper) for wide, deeper in levels)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(deeper, wide, 2, stride=2) for wide, deeper in reversed(levels)
        )
        self.merge = nn.ModuleList(_twice(2 * wide, wide) for wide, _ in reversed(levels))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes h w"]:
        """Return the score of every class at every position."""
        kept = [self.stem(x)]
        for down in self.down:
            kept.append(down(F.max_pool2d(kept[-1], 2)))
        y = kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            y = merge(torch.cat([kept.pop(), up(y)], 1))
        scores: Tensor = self.head(y)
        return scores


class DiffusionUNet(nn.Module):
    """Predicts the noise in an image that was made at a time step [Ho2020denoising].

    Residual blocks with GroupNorm take the time step's embedding, the lowest level attends to
    itself, and every block on the way up concatenates what its partner on the way down computed.

    References:
        [Ho2020denoising] J. Ho, A. Jain, P. Abbeel. Denoising Diffusion Probabilistic Models.
        NeurIPS 2020. https://arxiv.org/abs/2006.11239
    """

    def __init__(
        self,
        channels: int = 3,
        *,
        widths: Sequence[int] = (16, 32),
        blocks: int = 1,
        heads: int = 4,
        groups: int = 4,
    ) -> None:
        """Build it.

        Args:
            channels: Of the image.
            widths: Channels of each level, from the full size down; every level halves the size.
            blocks: Residual blocks of each level.
            heads: Of the attention.
            groups: Of every GroupNorm.
        """
        super().__init__()
        self.frequencies, embedded = widths[0], 4 * widths[0]
        self.time = nn.Sequential(
            nn.Linear(widths[0], embedded), nn.SiLU(), nn.Linear(embedded, embedded)
        )
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, width = [widths[0]], widths[0]
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Residual(width, wide, embedded, groups))
                width = wide
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.middle = nn.ModuleList(
            [
                _Residual(width, width, embedded, groups),
                _SelfAttention(width, heads, groups),
                _Residual(width, width, embedded, groups),
            ]
        )
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Residual(width + kept.pop(), wide, embedded, groups))
                width = wide
            if level:
                self.up.append(_Upsample(width))
        self.head = nn.Sequential(
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(
        self, image: Float[Tensor, "n c h w"], step: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Return the noise in each image.

        Args:
            image: Noisy images.
            step: Time step of each.
        """
        time = self.time(_sinusoids(step, self.frequencies))
        x = self.stem(image)
        kept = [x]
        for layer in self.down:
            x = layer(x, time) if isinstance(layer, _Residual) else layer(x)
            kept.append(x)
        for layer in self.middle:
            x = layer(x, time) if isinstance(layer, _Residual) else layer(x)
        for layer in self.up:
            if isinstance(layer, _Residual):
                x = layer(torch.cat([x, kept.pop()], 1), time)
            else:
                x = layer(x)
        noise: Tensor = self.head(x)
        return noise


class RecurrentClassifier(nn.Module):
    """Reads a sequence of token numbers with an LSTM or GRU in both directions."""

    def __init__(
        self,
        cell: type[nn.LSTM] | type[nn.GRU] = nn.LSTM,
        tokens: int = 50,
        *,
        width: int = 16,
        layers: int = 2,
        classes: int = 5,
    ) -> None:
        """Build it.

        Args:
            cell: The recurrent layer.
            tokens: Size of the vocabulary.
            width: Of the embedding and of each direction's state.
            layers: Stacked on each other.
            classes: Told apart.
        """
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.cells = cell(width, width, num_layers=layers, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "n classes"]:
        """Return the score of every class."""
        states, _ = self.cells(self.embedding(tokens))
        scores: Tensor = self.head(states.mean(1))
        return scores


class _Residual(nn.Module):
    """Two convolutions with GroupNorm; the time step shifts what is between them."""

    def __init__(self, entering: int, leaving: int, embedded: int, groups: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(groups, entering), _same(entering, leaving)
        self.shift = nn.Linear(embedded, leaving)
        self.norm2, self.conv2 = nn.GroupNorm(groups, leaving), _same(leaving, leaving)
        self.skip = nn.Identity() if entering == leaving else nn.Conv2d(entering, leaving, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv(F.silu(self.norm(x))) + self.shift(F.silu(time))[:, :, None, None]
        summed: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(y)))
        return summed


class _SelfAttention(nn.Module):
    """Every position attends to all others."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, -1, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        summed: Tensor = x + self.out(y.transpose(-1, -2).reshape(n, -1, h, w))
        return summed


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _same(width, width)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


def _same(entering: int, leaving: int) -> nn.Conv2d:
    """Return a convolution that keeps the size."""
    return nn.Conv2d(entering, leaving, 3, padding=1)


def _twice(entering: int, leaving: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (entering, leaving):
        layers += [_same(width, leaving), nn.BatchNorm2d(leaving), nn.ReLU()]
    return nn.Sequential(*layers)


def _sinusoids(step: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the time step at ``width // 2`` frequencies."""
    exponents = torch.arange(width // 2, device=step.device) / (width // 2)
    angles = step[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], 1)
