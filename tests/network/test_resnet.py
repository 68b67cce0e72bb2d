from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from autoprune.errors import ModelError
from autoprune.network.resnet import ResidualBlock, SmallResNet, digits_resnet20


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_parameters_match_table_6_of_the_paper(depth, millions):
    with torch.device("meta"):
        model = SmallResNet(depth)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)


def test_there_are_as_many_weighted_layers_as_the_name_says():
    with torch.device("meta"):
        model = SmallResNet(56)
    assert sum(parameter.ndim > 1 for parameter in model.parameters()) == 56


def test_stages_halve_the_image_and_double_the_channels():
    model = digits_resnet20().eval()
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


def test_the_shortcut_has_no_parameters_subsamples_and_pads_with_zeros():
    block = ResidualBlock(2, 5, stride=2).eval()
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {
        "conv1",
        "bn1",
        "conv2",
        "bn2",
    }
    torch.nn.init.zeros_(block.conv2.weight)  # only the shortcut is left
    x = torch.rand(1, 2, 5, 4)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()


def test_a_block_that_keeps_the_shape_adds_its_input():
    block = ResidualBlock(3, 3, stride=1).eval()
    x = torch.randn(2, 3, 6, 6)
    main = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    assert torch.equal(block(x), F.relu(x + main))


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_other_depths_are_refused(depth):
    with pytest.raises(ModelError, match="6n \\+ 2"):
        SmallResNet(depth)
