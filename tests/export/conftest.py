"""A small residual network with BatchNorm, and what it takes to cut and save it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.export.package import PackageMetrics


class Residual(nn.Module):
    """Stem, one residual block, head."""

    def __init__(self, classes: int):
        super().__init__()
        width = 8
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="session")
def build():
    """Return a function that builds the network, every time with the same weights."""

    def make(classes: int = 4) -> Residual:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Residual(classes)
            model.norm.running_mean.uniform_(-1, 1)
            model.norm.running_var.uniform_(0.5, 2)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def metrics():
    return PackageMetrics(
        accuracy=0.9,
        test_accuracy=None,
        loss=0.3,
        latency_ms=1.25,
        latency_error=0.1,
        profile="nano",
        macs=1000,
        params=500,
    )
