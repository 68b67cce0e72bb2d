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


class _ChannelAttention(nn.Module):
    """Attention between the channels of a head instead of between positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(5, 36), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, -1, 4).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        between = (key.transpose(-1, -2) @ value).softmax(-1)
        heads = (between @ query.transpose(-1, -2)).transpose(-1, -2)
        return self.out(heads.transpose(1, 2).reshape(batch, tokens, -1))


def test_heads_of_channel_attention_are_units(check):
    places = check(_ChannelAttention(), torch.randn(2, 7, 5)).places("qkv")
    heads = [list(range(4 * head, 4 * head + 4)) for head in range(3)]
    assert places["out.weight", 1] == heads
    assert places["qkv.weight", 0] == [
        [12 * part + place for part in range(3) for place in head] for head in heads
    ]
