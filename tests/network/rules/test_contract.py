from __future__ import annotations

import torch
from torch import nn


def test_einsum_is_a_matrix_product_to_the_labels(check):
    class _Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(7, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.einsum("ntc,nsc->nts", self.a(x), self.b(x)))

    places = check(_Einsum(), torch.randn(2, 7, 5)).places("a")
    assert places["a.weight", 0] == places["b.weight", 0] == [[i] for i in range(8)]


class _SharedProjection(nn.Module):
    """All heads go through the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.shared, self.out = nn.Linear(5, 24), nn.Linear(6, 7), nn.Linear(28, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.wide(x).unflatten(-1, (-1, 6))
        return self.out(self.shared(heads).flatten(2))


def test_heads_go_alone_where_they_share_a_weight(check):
    checked = check(_SharedProjection(), torch.randn(2, 7, 5))
    places = checked.places("wide")
    assert places["wide.weight", 0] == [list(range(6 * i, 6 * i + 6)) for i in range(4)]
    assert places["out.weight", 1] == [list(range(7 * i, 7 * i + 7)) for i in range(4)]
    shared = "shared by all rows of a wider tensor"
    assert checked.network.frozen["shared"] == checked.network.frozen["shared.input"] == shared
