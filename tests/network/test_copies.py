from __future__ import annotations

import torch
from torch import nn

from autoprune.network.copies import deep_copy


class Keeping(nn.Linear):
    """Keeps its last results, as code for plots of attention does."""

    def forward(self, x):
        self.last = super().forward(x)
        self.history = [{"mean": self.last.mean()}]
        return self.last


def test_a_model_that_keeps_its_results_is_copied():
    model = nn.Sequential(Keeping(3, 2), nn.ReLU())
    output = model(torch.randn(4, 3))
    twin = deep_copy(model)

    assert model[0].last.requires_grad
    assert torch.equal(twin[0].last, model[0].last)
    assert torch.equal(twin[0].history[0]["mean"], model[0].history[0]["mean"])
    twin[0].last.zero_()
    with torch.no_grad():
        twin[0].weight.zero_()
    assert output.abs().sum() > 0
    assert model[0].weight.abs().sum() > 0
