"""The residual networks for 32x32 images of [He2016deep] section 4.2.

References:
    [He2016deep] He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import ModelError


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A).

    Where the block changes the shape, the shortcut subsamples and appends zero channels. How many
    is read off the main path at run time, so the block stays correct after channels are removed.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        """Build the layers.

        Args:
            in_channels: Channels that come in.
            out_channels: Channels that go out, at least ``in_channels``.
            stride: Stride of the first convolution and of the shortcut.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.widens = out_channels > in_channels

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        """Return the block's output, ``i = ceil(h / stride)`` and ``j = ceil(w / stride)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.widens:
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return F.relu(y + x)


class SmallResNet(nn.Module):
    """A ResNet of ``6n + 2`` layers in three stages, as [He2016deep] trains on CIFAR-10."""

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        """Build the layers with the initialisation of the paper.

        Args:
            depth: Weighted layers, ``6n + 2`` for some n >= 1: 20, 32, 44, 56, 110.
            in_channels: Channels of the images.
            classes: Outputs.
            widths: Channels of the three stages, not decreasing.

        Raises:
            ModelError: ``depth`` is not ``6n + 2``.
        """
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ModelError(
                f"the depth of a small ResNet is 6n + 2 (20, 32, 56, ...), not {depth}"
            )
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks=blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks=blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks=blocks, stride=2)
        self.fc = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.mean(x, (2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, *, blocks: int, stride: int) -> nn.Sequential:
    """Return ``blocks`` residual blocks, the first of which changes the shape."""
    first = ResidualBlock(in_channels, out_channels, stride=stride)
    rest = (ResidualBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def digits_resnet20() -> SmallResNet:
    """Return the untrained network of the embedded digits task: one input channel, ten classes."""
    return SmallResNet(20, in_channels=1, classes=10)
