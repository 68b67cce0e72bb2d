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


class _SharedKeys(nn.Module):
    """All heads attend to the same keys and values (multi-query attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(5, 24), nn.Linear(5, 12), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, -1, 6).transpose(1, 2)
        k, v = self.kv(x).chunk(2, -1)
        weights = (q @ k.transpose(1, 2)[:, None] / 6**0.5).softmax(-1)
        return self.out((weights @ v[:, None]).transpose(1, 2).flatten(2))


def test_heads_go_alone_where_they_share_their_keys(check):
    checked = check(_SharedKeys(), torch.randn(2, 7, 5))
    assert checked.places("q")["q.weight", 0] == [list(range(6 * i, 6 * i + 6)) for i in range(4)]
    assert "shared by all rows of a wider tensor" in checked.network.frozen["kv"]
