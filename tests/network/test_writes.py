from __future__ import annotations

import pytest
import torch

from autoprune.network.writes import after_write

BASE = torch.zeros(2, 6, 4)
LABELS = torch.arange(1, 7).reshape(1, 6, 1)

VIEWS = {
    "first channels": (lambda x: x[:, :3], (1, 3, 1)),
    "last channels": (lambda x: x[:, 2:], (1, 4, 1)),
    "one image": (lambda x: x[1], (6, 1)),
    "one position": (lambda x: x[:, :, 2], (1, 6)),
    "some positions": (lambda x: x[:, :, 1:3], (1, 6, 1)),
    "a corner": (lambda x: x[1:, 3:, 2:], (1, 3, 1)),
    "everything": (lambda x: x[:], (1, 6, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("before", [(), (LABELS + 10,)])
def test_labels_are_those_of_a_tensor_that_is_written_to(name, before):
    part, shape = VIEWS[name]
    plane = torch.arange(101, 101 + torch.Size(shape).numel()).reshape(shape)
    full = (
        (before[0] if before else torch.zeros(1, 1, 1, dtype=torch.int64)).expand(2, 6, 4).clone()
    )
    view = part(full)
    view.copy_(plane.expand(view.shape))

    (after,) = after_write(BASE, before, part(BASE), (plane,))
    assert torch.equal(after.expand(2, 6, 4), full)
    assert after.numel() <= full.numel()


def test_filling_up_the_rest_leaves_labels_of_the_channels_alone():
    half = after_write(BASE, (), BASE[:, :, :2], (LABELS,))
    assert [plane.shape for plane in half] == [(1, 6, 4)]
    whole = after_write(BASE, half, BASE[:, :, 2:], (LABELS,))
    assert [plane.shape for plane in whole] == [(1, 6, 1)]
    assert torch.equal(whole[0], LABELS)


@pytest.mark.parametrize(
    ("base", "part"),
    [
        (BASE, lambda x: x[:, ::2]),
        (BASE, lambda x: x.transpose(0, 2)),
        (BASE, lambda x: x.view(12, 4)[3:9]),
        (BASE.transpose(0, 1), lambda x: x[:3]),
        (torch.zeros(0, 6), lambda x: x[:, :3]),
    ],
)
def test_other_parts_are_not_worked_out(base, part):
    view = part(base)
    plane = torch.arange(view.shape[1]).reshape(1, -1, *[1] * (view.ndim - 2))
    assert after_write(base, (), view, (plane,)) is None


def test_two_planes_are_not_worked_out():
    rows = torch.arange(2).reshape(2, 1, 1)
    assert after_write(BASE, (), BASE[:, :3], (LABELS[:, :3], rows)) is None
    assert after_write(BASE, (LABELS, rows), BASE[:, :3], (LABELS[:, :3],)) is None
