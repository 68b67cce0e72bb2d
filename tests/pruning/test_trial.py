"""What a trial cut compares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.verify import verified


class _Detects(nn.Module):
    """Keeps the positions with the highest scores and describes each with a second stage."""

    def __init__(self, fault: float = 1.0) -> None:
        super().__init__()
        self.stem, self.score = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 1, 1)
        self.hidden, self.describe, self.fault = nn.Linear(16, 12), nn.Linear(12, 4), fault

    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        features = torch.relu(self.stem(x))
        scores = self.score(features).flatten(1).sigmoid()
        found = []
        for row, picked in zip(features.flatten(2), scores, strict=True):
            kept = (picked > picked.mean()).nonzero()[:, 0]
            hidden = self.hidden(row[:, kept].T)
            hidden = torch.relu(hidden) * (hidden.shape[1] / 12) ** (self.fault - 1)
            found.append({"scores": picked[kept], "what": self.describe(hidden), "at": kept})
        return found


def test_the_number_of_things_found_may_change_when_cut() -> None:
    torch.manual_seed(0)
    network = verified(trace(_Detects(), torch.randn(2, 3, 6, 6)))
    assert {group.name: group.size for group in network.groups} == {"stem": 16, "hidden": 12}


def test_a_fault_behind_a_decision_is_found() -> None:
    torch.manual_seed(0)
    network = verified(trace(_Detects(fault=2.0), torch.randn(2, 3, 6, 6)))
    assert [group.name for group in network.groups] == ["stem"]
    assert "cutting differs from zeroing" in network.frozen["hidden"]


class _OnlyNumbers(nn.Module):
    """Returns whole numbers alone, as a segmentation network that was made for deployment."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.c(torch.relu(self.b(y * y.shape[1]))).argmax(1)


def test_what_whole_numbers_were_decided_by_is_compared() -> None:
    torch.manual_seed(0)
    network = verified(trace(_OnlyNumbers(), torch.randn(2, 3, 5, 5)))
    assert "cutting differs from zeroing" in network.frozen["a"]
    assert [group.name for group in network.groups] == ["b"]


class _Scaled(nn.Module):
    """Differs so little when cut that single precision cannot tell it from rounding."""

    def __init__(self, fault: float, *, single: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.fault, self.single = fault, single

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.single and y.dtype is not torch.float32:
            raise TypeError("single precision only")
        return self.b(y * (1 + self.fault * y.shape[1]))


@pytest.mark.parametrize(
    ("fault", "found"), [(0.0, False), (1e-6, True), (1e-5, True), (1e-3, True)]
)
def test_small_faults_are_no_rounding(fault: float, found: bool) -> None:
    torch.manual_seed(0)
    network = verified(trace(_Scaled(fault), torch.randn(5, 4)))
    assert ("a" in network.frozen) == found


def test_code_that_insists_on_single_precision_gets_more_room() -> None:
    torch.manual_seed(0)
    network = verified(trace(_Scaled(1e-5, single=True), torch.randn(5, 4)))
    assert [group.name for group in network.groups] == ["a"]
    network = verified(trace(_Scaled(1e-3, single=True), torch.randn(5, 4)))
    assert "cutting differs from zeroing" in network.frozen["a"]
