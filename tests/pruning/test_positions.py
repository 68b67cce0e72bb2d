from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.pruning.positions import inputs_at
from autoprune.pruning.reads import Convolution, Product, Read


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (1, 1), (1, 1), 1), ((2, 1), (0, 2), (1, 2), 1), ((1, 2), (1, 0), (1, 1), 2)],
)
def test_sampled_patches_are_what_the_convolution_reads(stride, padding, dilation, groups):
    """Each row times the flattened weight is the convolution's own output there."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, (3, 2), stride, padding, dilation, groups, bias=False).double()
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64)
    outputs = conv(x).detach()
    area = outputs[0, 0].numel()
    positions = torch.stack([torch.randperm(area)[:5] for _ in range(3)])
    how = Convolution(1, stride, padding, dilation, groups, False)
    rows = inputs_at(Read("w", x, how, whole=True), (3, 2), positions)
    weight = conv.weight.detach().movedim(1, -1).reshape(groups, 6 // groups, -1)
    found = (rows @ weight.mT).transpose(0, 1).reshape(3, 5, 6)
    expected = outputs.flatten(2).gather(2, positions[:, None].expand(3, 6, 5)).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_rows_of_a_product_are_its_positions():
    x = torch.randn(7, 3)
    positions = torch.tensor([4, 1])
    rows = inputs_at(Read("w", x, Product(1), whole=True), (), positions)
    assert torch.equal(rows, x[[4, 1]][None])
