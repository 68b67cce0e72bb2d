from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.network.inputs import batch_size, evaluating, first_samples


class Remembering(nn.Module):
    """Changes everything about itself that a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.table, self.count, self.tables, self.log = None, 0, {}, []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.table, self.count = torch.ones(2), self.count + 1
        self.tables["cpu"] = x
        self.log.append(1)
        self.calls += 1
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.ones(2))
            self.extra = nn.Linear(2, 2)
        return self.extra(self.layer(x)) + self.made


def test_a_pass_leaves_nothing_behind():
    model = Remembering()
    model.layer.eval()
    state, tables = list(model.state_dict()), model.tables
    with evaluating(model), torch.no_grad():
        assert not model.training
        model(torch.randn(1, 2))
        assert model.count == 1

    assert (model.table, model.count, model.log, tables) == (None, 0, [], {})
    assert model.tables is tables
    assert list(model.state_dict()) == state
    assert not hasattr(model, "extra")
    assert model.calls == 0
    assert (model.training, model.layer.training) == (True, False)


def test_what_was_there_before_stays():
    model = Remembering()
    model(torch.randn(1, 2))
    made, extra = model.made, model.extra
    with evaluating(model), torch.no_grad():
        model(torch.randn(1, 2))

    assert (model.count, model.log, int(model.calls)) == (1, [1], 1)
    assert model.made is made
    assert model.extra is extra


def test_a_pass_that_fails_leaves_nothing_behind_either():
    model = Remembering()
    with pytest.raises(RuntimeError), evaluating(model):
        model(torch.randn(1, 3))

    assert (model.count, model.log, model.tables) == (0, [], {})
    assert model.training


@pytest.mark.parametrize(
    ("inputs", "batch"),
    [
        ((torch.zeros(5, 3, 8, 8),), 5),
        (([torch.zeros(3, 8, 8), torch.zeros(3, 9, 7)],), 2),
        ({"images": [torch.zeros(1, 8, 8)] * 4, "scale": 0.5}, 4),
        (([torch.zeros(6, 3, 8, 8), torch.zeros(6, 3, 4, 4)],), 6),
        ({"data": {"x": torch.zeros(3, 4)}, "flag": True}, 3),
        ((torch.tensor(1.0), torch.zeros(7)), 1),
        ((), 1),
        (([], 3), 1),
    ],
)
def test_the_batch_is_the_first_extent_or_the_length_of_a_list_of_images(inputs, batch):
    assert batch_size(inputs) == batch


def test_the_first_samples_of_tensors_and_of_lists_of_images():
    images, boxes = [torch.full((3, 4, 4), float(i)) for i in range(5)], torch.zeros(5, 4)
    first, some, other = first_samples((images, boxes, torch.zeros(3)), 2)
    assert [int(image.max()) for image in first] == [0, 1]
    assert some.shape == (2, 4)
    assert other.shape == (3,)
    assert first_samples({"x": boxes, "n": 5}, 2)["x"].shape == (2, 4)
