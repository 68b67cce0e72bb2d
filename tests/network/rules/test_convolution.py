from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import nn


@pytest.mark.parametrize(
    ("layer", "after"),
    [
        (nn.ConvTranspose2d(8, 6, 2, 2), 6),
        (nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8), 8),
        (nn.ConvTranspose2d(8, 16, 4, 2, 1, groups=8), 16),
        (nn.ConvTranspose2d(8, 12, 3, groups=2), 12),
        (nn.Conv2d(8, 16, 3, groups=8), 16),
        (nn.Conv2d(8, 12, 3, groups=4), 12),
    ],
)
def test_plain_grouped_and_transposed_convolutions(check, layer, after):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(after, 4, 1)).eval()
    x = torch.randn(1, 3, 7, 7)
    checked = check(model, x)
    assert ("1.weight", 0 if isinstance(layer, nn.ConvTranspose2d) else 1) in checked.places(
        "0"
    ) or layer.groups == 8
    flops = FlopCountAnalysis(model, (x,))
    assert checked.network.ops.macs()[0] == flops.unsupported_ops_warnings(False).total()


def test_a_depthwise_transposed_convolution_follows_its_input(check):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 16, 2, 2, groups=8), nn.Conv2d(16, 4, 1)
    )
    places = check(model, torch.randn(1, 3, 4, 4)).places("0")
    assert places["1.weight", 0] == [[i] for i in range(8)]
    assert places["2.weight", 1] == [[2 * i, 2 * i + 1] for i in range(8)]


class _ConvolvedHeads(nn.Module):
    """Every head's feature map goes through the same depthwise convolution, as in MViT."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.pool, self.head = (
            nn.Linear(5, 24),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Linear(24, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, h, w, _ = x.shape
        y = self.wide(x).view(n, h, w, -1, 6).permute(0, 3, 4, 1, 2)
        y = self.pool(y.reshape(-1, 6, h, w)).view(n, -1, 6, h, w)
        return self.head(y.permute(0, 3, 4, 1, 2).flatten(3))


def test_heads_that_are_convolved_alike_are_units(check):
    checked = check(_ConvolvedHeads(), torch.randn(2, 4, 4, 5))
    (group,) = checked.network.groups
    assert group.size == 4
    assert checked.places("wide")["head.weight", 1] == [
        list(range(6 * i, 6 * i + 6)) for i in range(4)
    ]
    assert checked.network.frozen["pool"] == "shared by all rows of a wider tensor"
    pool = next(op for op in checked.network.ops.ops if op.kind == "conv")
    assert pool.cout.at([2]) * 2 == pool.cout.at([4]) == 2 * 24


class _Deformable(nn.Module):
    """Calls torchvision's operator as torchvision does where there is no bias."""

    def __init__(self, groups: int, parts: int) -> None:
        super().__init__()
        self.stem, self.offset = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 18 * parts, 1)
        self.weight = nn.Parameter(torch.randn(12, 8 // groups, 3, 3))
        self.head, self.groups, self.parts = nn.Conv2d(12, 2, 1), groups, parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = x.new_zeros(self.weight.shape[0])
        numbers = (1, 1, 1, 1, 1, 1, self.groups, self.parts)
        y = torch.ops.torchvision.deform_conv2d(
            self.stem(x), self.weight, self.offset(x), x.new_zeros(0), bias, *numbers, False
        )
        return self.head(y)


@pytest.fixture
def deform_conv2d():
    """Stand in for torchvision's compiled operator: a convolution that deforms nothing."""

    def plain(image, weight, offset, mask, bias, *numbers):
        return F.conv2d(image, weight, bias, numbers[0], numbers[2], numbers[4], numbers[6])

    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        yield
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    numbers = "int sh, int sw, int ph, int pw, int dh, int dw, int g, int og, bool m"
    library.define(
        f"deform_conv2d(Tensor x, Tensor w, Tensor o, Tensor k, Tensor b, {numbers}) -> Tensor"
    )
    library.impl("deform_conv2d", plain, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize(("groups", "parts", "units"), [(1, 1, 8), (1, 2, 4), (4, 1, 2)])
def test_offsets_of_a_deformable_convolution_stay(check, deform_conv2d, groups, parts, units):
    checked = check(_Deformable(groups, parts), torch.randn(1, 3, 6, 6))
    assert len(checked.places("stem")["stem.weight", 0]) == units
    assert ("head.weight", 1) in {
        (m.path, m.dim) for group in checked.network.groups for m in group.members
    }
    assert "moves the positions" in checked.network.frozen["offset"]
