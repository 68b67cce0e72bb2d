from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def _pairs(first: int) -> list[list[int]]:
    return [[i] for i in range(first)]


RESIZES = {
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "lp_pool": lambda x: F.lp_pool2d(x, 2, 2),
    "adaptive_avg": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, 4),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "nearest_exact": lambda x: F.interpolate(x, size=(5, 11), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"),
    "antialias": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, size=(9, 9), mode="bicubic"),
    "bicubic_antialias": lambda x: F.interpolate(x, size=(5, 5), mode="bicubic", antialias=True),
    "area": lambda x: F.interpolate(x, size=(4, 4), mode="area"),
    "reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 1, 0), mode="circular"),
    "unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "grid": lambda x: F.grid_sample(x, torch.zeros(len(x), 5, 5, 2), align_corners=False),
}


@pytest.mark.parametrize("name", RESIZES)
def test_channels_pass_what_changes_positions_alone(between, name):
    network = between(RESIZES[name])
    places = network.places("before")
    assert places["before.weight", 0] == places["after.weight", 1] == _pairs(8)


@pytest.mark.parametrize("size", [(16,), (4, 8, 8)])
def test_one_and_three_dimensions(between, size):
    mode = {1: "linear", 3: "trilinear"}[len(size)]
    max_pool = {1: F.max_pool1d, 3: F.max_pool3d}[len(size)]
    avg_pool = {1: F.avg_pool1d, 3: F.avg_pool3d}[len(size)]
    adaptive = {1: F.adaptive_avg_pool1d, 3: F.adaptive_avg_pool3d}[len(size)]

    def operation(x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(avg_pool(max_pool(x, 2), 2), scale_factor=2.0, mode=mode)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
        return adaptive(F.pad(x, (1, 1) * len(size), mode="replicate"), 2)

    assert between(operation, size=size).places("before")["after.weight", 1] == _pairs(8)


def test_four_channels_make_a_square_of_positions(between):
    places = between(lambda x: F.pixel_shuffle(x, 2), 2).places("before")
    assert places["before.weight", 0] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert places["after.weight", 1] == [[0], [1]]


def test_a_square_of_positions_makes_four_channels(between):
    places = between(lambda x: F.pixel_unshuffle(x, 2), 32).places("before")
    assert places["after.weight", 1] == [list(range(4 * i, 4 * i + 4)) for i in range(8)]


def test_windows_are_unfolded_and_folded(between):
    def operation(x: torch.Tensor) -> torch.Tensor:
        return F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)

    assert between(operation).places("before")["after.weight", 1] == _pairs(8)


def test_windows_are_channels_of_a_linear_layer(between):
    network = between(lambda x: F.unfold(x, 2, stride=2), nn.Conv1d(32, 4, 1))
    places = network.places("before")
    assert places["after.weight", 1] == [list(range(4 * i, 4 * i + 4)) for i in range(8)]


def test_folded_channels_go_in_whole_windows(between):
    network = between(lambda x: F.fold(x.flatten(2), (16, 16), 2, stride=2), 2)
    assert network.places("before")["before.weight", 0] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("shuffle", [F.channel_shuffle, F.native_channel_shuffle])
def test_shuffled_groups_stay_equally_wide(between, shuffle):
    places = between(lambda x: shuffle(x, 2)).places("before")
    assert places["before.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert places["after.weight", 1] == [[0, 1], [2, 3], [4, 5], [6, 7]]


class _Sampled(nn.Module):
    """A layer computes the positions at which another one's output is read."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.values, self.head = (
            nn.Conv2d(3, 2, 1),
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = self.places(x).permute(0, 2, 3, 1).tanh()
        return self.head(F.grid_sample(self.values(x), places, align_corners=False))


def test_positions_that_are_read_stay(check):
    network = check(_Sampled(), torch.randn(2, 3, 6, 6)).network
    assert [group.name for group in network.groups] == ["values"]
    assert network.frozen["places"] == "positions that grid_sampler_2d reads"


def test_pooling_over_labelled_positions_freezes_them(check):
    class _PoolsChannels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(6, 8), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.max_pool1d(self.layer(x), 2))

    network = check(_PoolsChannels(), torch.randn(2, 3, 6)).network
    assert "labels vary over the positions of max_pool" in network.frozen["layer"]
