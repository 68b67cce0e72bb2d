"""Writes the layer lists of the networks in the Jetson tables, for ``autoprune calibrate``.

``python benchmarks/make_jetson_layers.py FOLDER`` writes FOLDER/layers.json (every network traced
at its image size) and FOLDER/names.json (which of them a table's name means, and the commit and
licence of each table). The networks are torchvision's and timm's public definitions with random
weights; YOLOX is defined below. Not rebuilt: PIDNet and SegFormer, whose rows are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.latency.layers import rows_from_ops
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace

TORCHVISION = (
    *("alexnet", "squeezenet1_0", "squeezenet1_1"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
)
#: timm name and image size.
TIMM = (
    *(("mixnet_s", 224), ("mixnet_m", 224), ("mixnet_l", 224)),
    *(("efficientformer_l1", 224), ("mobilevit_s", 256), ("vit_tiny_patch16_224", 224)),
)
#: Name, depth and width multipliers.
YOLOX = (("yolox_s", 0.33, 0.50), ("yolox_m", 0.67, 0.75), ("yolox_l", 1.0, 1.0))

NAMES = {
    "networks": {
        "Classification/EfficientFormer-l1": "efficientformer_l1",
        "Classification/MixNet-s": "mixnet_s",
        "Classification/MixNet-m": "mixnet_m",
        "Classification/MixNet-l": "mixnet_l",
        "Classification/MobileNetV3-small": "mobilenet_v3_small",
        "Classification/MobileNetV3-large": "mobilenet_v3_large",
        "Classification/MovileViT-s": "mobilevit_s",
        "Classification/ResNet18": "resnet18",
        "Classification/ResNet34": "resnet34",
        "Classification/ResNet50": "resnet50",
        "Classification/ViT-tiny": "vit_tiny_patch16_224",
        "Detection/YOLOX-s": "yolox_s",
        "Detection/YOLOX-m": "yolox_m",
        "Detection/YOLOX-l": "yolox_l",
    },
    "sources": {
        "NVIDIA-AI-IOT/torch2trt": {"commit": "4e820ae3", "licence": "MIT"},
        "NVIDIA-AI-IOT/tf_to_trt_image_classification": {
            "commit": "10822955",
            "licence": "BSD-3-Clause",
        },
        "Nota-NetsPresso/netspresso-trainer": {"commit": "cdefe125", "licence": "Apache-2.0"},
    },
}


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], int]]:
    """Yield every network's name, how to build it, and its image size."""
    for name in TORCHVISION:
        yield name, ModelSource.parse(f"torchvision:{name}").build, 224
    for name, size in TIMM:
        yield name, ModelSource.parse(f"timm:{name}").build, size
    for name, depth, width in YOLOX:
        yield name, lambda depth=depth, width=width: Yolox(depth=depth, width=width), 640


def layer_lists() -> dict[str, list[list[object]]]:
    """Return the layer list of every network, traced at batch 1."""
    return {
        name: rows_from_ops(trace(build(), (torch.zeros(1, 3, size, size),)).ops)
        for name, build, size in networks()
    }


def write(folder: Path) -> tuple[Path, Path]:
    """Write layers.json and names.json into ``folder`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    layers, names = folder / "layers.json", folder / "names.json"
    layers.write_text(json.dumps(layer_lists()), encoding="utf-8")
    names.write_text(json.dumps(NAMES, indent=2), encoding="utf-8")
    return layers, names


class _Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(cout),
            nn.SiLU(),
        )


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, *, residual: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(_Conv(channels, channels), _Conv(channels, channels, 3))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, with the input added where the block is residual."""
        return x + self.convs(x) if self.residual else self.convs(x)


class _CrossStage(nn.Module):
    """Half of the channels pass ``depth`` bottlenecks, the other half none [Wang2020cspnet]."""

    def __init__(self, cin: int, cout: int, depth: int, *, residual: bool = False) -> None:
        super().__init__()
        hidden = cout // 2
        self.short = _Conv(cin, hidden)
        self.long = nn.Sequential(
            _Conv(cin, hidden), *(_Bottleneck(hidden, residual=residual) for _ in range(depth))
        )
        self.join = _Conv(2 * hidden, cout)

    def forward(self, x: Tensor) -> Tensor:
        """Return both halves joined."""
        return self.join(torch.cat([self.long(x), self.short(x)], 1))


class _PyramidPool(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = _Conv(channels, channels // 2)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.join = _Conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the squeezed input joined with its three poolings."""
        x = self.squeeze(x)
        return self.join(torch.cat([x, *(pool(x) for pool in self.pools)], 1))


class _Head(nn.Module):
    """Class, box and objectness of one scale, predicted by two separate towers."""

    def __init__(self, cin: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.stem = _Conv(cin, hidden)
        self.classes = nn.Sequential(_Conv(hidden, hidden, 3), _Conv(hidden, hidden, 3))
        self.boxes = nn.Sequential(_Conv(hidden, hidden, 3), _Conv(hidden, hidden, 3))
        self.class_out = nn.Conv2d(hidden, classes, 1)
        self.box_out = nn.Conv2d(hidden, 4, 1)
        self.object_out = nn.Conv2d(hidden, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``4 + 1 + classes`` numbers per position, flattened."""
        x = self.stem(x)
        boxes = self.boxes(x)
        parts = [
            self.box_out(boxes),
            self.object_out(boxes).sigmoid(),
            self.class_out(self.classes(x)).sigmoid(),
        ]
        return torch.cat(parts, 1).flatten(2)


class Yolox(nn.Module):
    """The YOLOX detector [Ge2021yolox] with four classes, as in the tables.

    Args:
        depth: Multiplier of the number of bottlenecks.
        width: Multiplier of the channels.
        classes: Number of classes.

    References:
        [Ge2021yolox] Ge et al., "YOLOX: Exceeding YOLO Series in 2021", 2021.
        [Wang2020cspnet] Wang et al., "CSPNet: A New Backbone that can Enhance Learning Capability
        of CNN", 2020.
    """

    def __init__(self, *, depth: float, width: float, classes: int = 4) -> None:
        super().__init__()
        base, n = int(64 * width), max(round(3 * depth), 1)
        c3, c4, c5 = 4 * base, 8 * base, 16 * base
        self.stem = nn.Sequential(
            _Conv(12, base, 3),
            _Conv(base, 2 * base, 3, 2),
            _CrossStage(2 * base, 2 * base, n, residual=True),
        )
        self.stage3 = nn.Sequential(
            _Conv(2 * base, c3, 3, 2), _CrossStage(c3, c3, 3 * n, residual=True)
        )
        self.stage4 = nn.Sequential(_Conv(c3, c4, 3, 2), _CrossStage(c4, c4, 3 * n, residual=True))
        self.stage5 = nn.Sequential(
            _Conv(c4, c5, 3, 2), _PyramidPool(c5), _CrossStage(c5, c5, n, residual=False)
        )
        self.up = nn.Upsample(scale_factor=2)
        self.lateral5, self.down4 = _Conv(c5, c4), _CrossStage(2 * c4, c4, n)
        self.lateral4, self.down3 = _Conv(c4, c3), _CrossStage(2 * c3, c3, n)
        self.rise3, self.up4 = _Conv(c3, c3, 3, 2), _CrossStage(2 * c3, c4, n)
        self.rise4, self.up5 = _Conv(c4, c4, 3, 2), _CrossStage(2 * c4, c5, n)
        self.heads = nn.ModuleList(_Head(c, c3, classes) for c in (c3, c4, c5))

    def forward(self, image: Tensor) -> Tensor:
        """Return the predictions of all positions of three scales."""
        quarters = [image[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x3 = self.stage3(self.stem(torch.cat(quarters, 1)))
        x4 = self.stage4(x3)
        top = self.lateral5(self.stage5(x4))
        middle = self.lateral4(self.down4(torch.cat([self.up(top), x4], 1)))
        out3 = self.down3(torch.cat([self.up(middle), x3], 1))
        out4 = self.up4(torch.cat([self.rise3(out3), middle], 1))
        out5 = self.up5(torch.cat([self.rise4(out4), top], 1))
        scales = zip(self.heads, (out3, out4, out5), strict=True)
        return torch.cat([head(x) for head, x in scales], 2)


def main() -> None:
    """Read the folder from the command line and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where layers.json and names.json go")
    for path in write(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
