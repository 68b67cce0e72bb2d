from __future__ import annotations

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_of_a_group_norm_stay_equally_wide(between, groups):
    places = between(nn.Sequential(nn.GroupNorm(groups, 8))).places("before")
    each = 8 // groups
    assert places["before.weight", 0] == [list(range(j, 8, each)) for j in range(each)]


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(8, 8), nn.InstanceNorm2d(8, affine=True), nn.BatchNorm2d(8)]
)
def test_channels_that_are_normalised_alone_go_alone(between, norm):
    network = between(norm)
    assert network.places("before")["operation.weight", 0] == [[i] for i in range(8)]


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8)])
def test_a_norm_over_the_channels_mixes_them(check, norm):
    model = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 2))
    (group,) = check(model, torch.randn(3, 4, 5)).network.groups
    assert group.mixed
    assert ("1.weight", 0) in {(member.path, member.dim) for member in group.members}
