from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.network.rules.move import _reshaped, _runs


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((2, 3, 4), (2, 12)),
        ((2, 12), (2, 3, 4)),
        ((2, 6, 5), (2, 3, 10)),
        ((1, 6), (6,)),
        ((6,), (1, 6, 1)),
        ((2, 3, 4, 5), (6, 4, 5, 1)),
        ((4, 6), (3, 8)),
        ((), (1, 1)),
    ],
)
def test_a_plane_under_a_view_is_what_the_full_labels_are(source, target):
    for dims in range(2 ** len(source)):
        shape = [size if dims >> dim & 1 else 1 for dim, size in enumerate(source)]
        plane = torch.arange(torch.Size(shape).numel()).reshape(shape)
        moved = _reshaped(plane, source, target)
        assert torch.equal(moved.expand(target), plane.expand(source).reshape(target))


def test_runs_are_the_shortest():
    runs = [(list(old), list(new)) for old, new in _runs((2, 3, 4, 5), (2, 12, 5, 1))]
    assert runs == [([0], [0]), ([1, 2], [1]), ([3], [2]), ([], [3])]
    assert [(list(a), list(b)) for a, b in _runs((0, 8, 4), (0, 32))] == [([0], [0]), ([1, 2], [1])]
    with pytest.raises(ValueError, match=r"\(2, 3\) seen as \(5,\)"):
        list(_runs((2, 3), (5,)))


MOVES = {
    "flip": (lambda x: x.flip(1).flip((1, 2)), 8),
    "flip channels": (lambda x: x.flip(1), 8),
    "repeat": (lambda x: x.repeat(1, 3, 2, 1), 24),
    "repeat batch": (lambda x: x.repeat(2, 1, 1, 1, 1)[0], 8),
    "interleave": (lambda x: x.repeat_interleave(2, 1), 16),
    "tile": (lambda x: x.tile(2, 1, 1), 16),
    "roll": (lambda x: x.roll((1, -2), (2, 3)), 8),
    "triangle": (lambda x: x.triu() + x.tril(-1), 8),
    "windows": (lambda x: x.unfold(2, 4, 2).mean(-1), 8),
    "zeroed": (lambda x: x + torch.empty_like(x).zero_() + torch.full_like(x, 2.0), 8),
    "complex": (lambda x: torch.view_as_real(torch.complex(x, x.flip(1).flip(1)))[..., 0], 8),
    "rotated": (
        lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)))).flatten(3),
        8,
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_channels_move_as_data_does(between, name):
    operation, channels = MOVES[name]
    network = between(operation, channels)
    assert len(network.places("before")["before.weight", 0]) == 8
    assert ("after.weight", 1) in network.places("before")


FIXED = {
    "roll": (lambda x: x.roll(1, 1), 8, "moved by roll"),
    "triangle": (lambda x: x.movedim(1, -1).tril().movedim(-1, 1), 8, "placed beside a diagonal"),
    "windows": (lambda x: x.unfold(1, 2, 2).amax(-1), 4, "cut into windows"),
    "strides": (lambda x: x.as_strided((2, 4, 8, 8), (512, 128, 8, 1)), 4, "seen by strides"),
    "parts": (
        lambda x: (
            torch.view_as_complex(x.movedim(1, -1).unflatten(-1, (4, 2)).contiguous())
            .abs()
            .movedim(-1, 1)
        ),
        4,
        "real and imaginary part belong together",
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_channels_that_are_placed_by_number_stay(between, name):
    operation, channels, reason = FIXED[name]
    assert reason in between(operation, channels).network.frozen["before"]


class _Buffers(nn.Module):
    """Writes what two layers return into the halves of a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        y = x.new_empty(len(x), a.shape[1] + b.shape[1], *x.shape[2:])
        y[:, : a.shape[1]] = a
        y[:, a.shape[1] :] = b
        return self.head(F.relu(y))


def test_what_is_written_into_parts_of_a_new_tensor_is_followed(check):
    checked = check(_Buffers(), torch.randn(2, 3, 5, 5))
    assert checked.places("a")["head.weight", 1] == [[i] for i in range(4)]
    assert checked.places("b")["head.weight", 1] == [[i] for i in range(4, 8)]


def test_halves_of_the_image_are_put_together_again(between):
    def operation(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x[:, :0]).new_zeros(x.shape)
        y[:, :, :4] = x[:, :, 4:]
        y[:, :, 4:].copy_(x[:, :, :4])
        return y

    assert between(operation).places("before")["after.weight", 1] == [[i] for i in range(8)]


def test_a_fixed_tensor_that_is_written_over_channels_freezes_them(between):
    kept = torch.randn(8, 8, 8)
    network = between(lambda x: x.clone().copy_(kept) + x)
    assert "a fixed tensor is written into it" in network.network.frozen["before"]
