from __future__ import annotations

import pytest
import torch
from torch import nn

ALONG_POSITIONS = {
    "sort": lambda x: x.sort(2).values,
    "argsort": lambda x: torch.argsort(x, dim=3) + x,
    "topk": lambda x: x.topk(3, dim=2).values,
    "kthvalue": lambda x: x.kthvalue(2, dim=3, keepdim=True).values,
    "median": lambda x: x.median(3, keepdim=True)[0],
    "mode": lambda x: x.mode(2, keepdim=True)[0],
    "cummax": lambda x: x.cummax(3)[0] + x.cummin(3)[0],
    "largest": lambda x: x.max(2, keepdim=True)[0] - x.min(3, keepdim=True)[0],
    "argmin": lambda x: x * x.argmin(2, keepdim=True),
    "amax": lambda x: x.amax((2, 3), keepdim=True),
    "dropped": lambda x: x.max(2)[0][..., None],
    "logsumexp": lambda x: x.logsumexp((2, 3), keepdim=True),
    "prod": lambda x: x.prod(2, keepdim=True),
    "any": lambda x: x * (x > 0).any(2, keepdim=True),
    "aminmax": lambda x: x - torch.aminmax(x, dim=3, keepdim=True).min,
    "cumsum": lambda x: x.cumsum(2) + x.cumprod(3),
}


@pytest.mark.parametrize("name", ALONG_POSITIONS)
def test_channels_pass_what_compares_positions(between, name):
    places = between(ALONG_POSITIONS[name]).places("before")
    assert places["after.weight", 1] == [[i] for i in range(8)]


ALONG_CHANNELS = {
    "sort": lambda x: x.sort(1).values,
    "kthvalue": lambda x: x.kthvalue(2, dim=1, keepdim=True).values.expand(-1, 8, -1, -1),
    "argmin": lambda x: x.argmin(1, keepdim=True).float().expand(-1, 8, -1, -1),
    "median": lambda x: x.median().expand(2, 8, 4, 4),
}


@pytest.mark.parametrize("name", ALONG_CHANNELS)
def test_channels_that_are_ordered_stay(between, name):
    network = between(ALONG_CHANNELS[name]).network
    assert network.frozen["before"] == f"ordered by value in {name}"


def test_the_largest_channel_may_come_from_fewer(between):
    """As in spatial attention: cutting differs from zeroing, so the group is marked as mixed."""
    network = between(lambda x: x * x.max(1, keepdim=True)[0].sigmoid()).network
    (group,) = network.groups
    assert group.name == "before"
    assert group.mixed


def test_channels_whose_numbers_are_read_stay(between):
    network = between(lambda x: x * x.max(1, keepdim=True)[1]).network
    assert "told apart by number" in network.frozen["before"]


def test_pieces_of_maxout_go_together(between):
    places = between(lambda x: x.unflatten(1, (4, 2)).max(2)[0], 4).places("before")
    assert places["before.weight", 0] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("choose", "name"),
    [
        (lambda x: (x > 0).nonzero().float(), "nonzero"),
        (lambda x: x.masked_select(x > 0)[:4, None], "masked_select"),
        (lambda x: x.round().unique()[:4, None], "_unique2"),
    ],
)
def test_what_is_chosen_by_value_stays_without_being_unsupported(check, choose, name):
    class _Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.layer(x)
            return self.head(y), choose(y).sum()

    network = check(_Chooses(), torch.randn(4, 3)).network
    assert network.frozen["layer"] == f"chosen by value in {name}"
