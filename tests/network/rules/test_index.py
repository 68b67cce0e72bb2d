from __future__ import annotations

import pytest
import torch
from torch import nn

PICKS = {
    "rows": lambda x: x[:, :, torch.tensor([0, 2, 2])],
    "grid": lambda x: x[:, :, torch.tensor([[0], [3]]), torch.tensor([1, 2])],
    "apart": lambda x: x[torch.tensor([1, 0]), :, torch.tensor([0, 3])],
    "mask": lambda x: x.movedim(1, -1)[torch.ones(2, 8, 8, dtype=torch.bool)],
    "none": lambda x: x.movedim(1, -1)[torch.zeros(2, 8, 8, dtype=torch.bool)],
    "select": lambda x: x.index_select(2, torch.tensor([5, 1])),
    "gather": lambda x: x.gather(3, torch.zeros(2, x.shape[1], 8, 2, dtype=torch.int64)),
    "along": lambda x: torch.take_along_dim(x, x.argsort(2), 2),
    "everything": lambda x: x[:, torch.arange(x.shape[1])],
}


@pytest.mark.parametrize("name", PICKS)
def test_channels_pass_where_positions_are_picked(between, name):
    layers = {"apart": nn.Conv1d(8, 4, 1), "mask": nn.Linear(8, 4), "none": nn.Linear(8, 4)}
    places = between(PICKS[name], layers.get(name, 8)).places("before")
    assert places["after.weight", 1] == [[i] for i in range(8)]


@pytest.mark.parametrize(
    ("picked", "name"),
    [
        (lambda x: x[:, torch.tensor([3, 1, 0])], "index"),
        (lambda x: x.index_select(1, torch.tensor([3, 1, 0])), "index_select"),
        (lambda x: x.gather(1, torch.full((2, 3, 8, 8), 7)), "gather"),
    ],
)
def test_picked_channels_stay(between, picked, name):
    network = between(picked, 3).network
    assert network.frozen["before"] == f"picked by number in {name}"


def test_what_is_scattered_over_positions_keeps_its_channels(between):
    def operation(x: torch.Tensor) -> torch.Tensor:
        places = torch.zeros(2, x.shape[1], 8, 8, dtype=torch.int64)
        return torch.zeros_like(x).scatter(2, places, x) + x.scatter_reduce(3, places, x, "sum")

    assert between(operation).places("before")["after.weight", 1] == [[i] for i in range(8)]


def test_channels_that_are_scattered_stay(between):
    network = between(lambda x: x.scatter(1, torch.zeros(2, 1, 8, 8, dtype=torch.int64), 1.0))
    assert network.network.frozen["before"] == "written by number in scatter"
