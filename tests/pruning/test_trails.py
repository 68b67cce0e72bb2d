from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.network.inputs import evaluating
from autoprune.pruning.trails import Ending, EndingsOf, Follower


class Way(nn.Module):
    """A layer, whatever comes behind it, and an addition."""

    def __init__(self, behind, image):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 8, 3, padding=1) if image else nn.Linear(3, 8)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.randn(8))
        with torch.no_grad():
            for tensor in (self.norm.running_mean, self.norm.weight, self.norm.bias):
                tensor.normal_()
            self.norm.running_var.uniform_(0.5, 2)
        self.behind = behind

    def forward(self, x, stream):
        return stream + self.behind(self, self.layer(x))


def _shuffled(way, y):
    n, c, h, w = y.shape
    y = y.view(n, c, h // 2, 2, w).permute(0, 2, 4, 3, 1).reshape(n, -1, c)
    return y * way.scale


WAYS = {
    "nothing": (lambda way, y: y, True),
    "norm": (lambda way, y: way.norm(y), True),
    "norm and layer scale": (lambda way, y: way.norm(y) * way.scale[:, None, None], True),
    "windows": (_shuffled, True),
    "tokens": (lambda way, y: y.unflatten(0, (2, 2)).transpose(1, 2).roll(1, 1), False),
    "scaled tokens": (lambda way, y: y * way.scale, False),
}


class _Recorded(Follower):
    def on_sum(self, run, trails):
        place = 0 if trails[0] is not None else 1
        self.trail, self.tip, self.stream = trails[place], run.args[place], run.args[1 - place]

    def on_read(self, read, run):
        self.output = super().on_read(read, run)
        return self.output


@pytest.mark.parametrize("name", WAYS)
def test_a_wish_about_the_sum_is_told_to_the_layer(name):
    """Moving the output by what is undone and unscaled moves the tip by the wish."""
    behind, image = WAYS[name]
    way = Way(behind, image).double().eval()
    x = torch.randn(2, 3, 4, 4) if image else torch.randn(4, 5, 3)
    with torch.no_grad():
        shape = behind(way, way.layer(x.double())).shape
    follower = _Recorded(way, ["layer.weight"])
    with evaluating(way), torch.no_grad(), follower:
        way(x.double(), torch.randn(shape).double())
    trail, tip, output = follower.trail, follower.tip, follower.output
    assert trail.path == "layer.weight"
    assert trail.norm == ("norm" if "norm" in name else None)
    with torch.no_grad():
        torch.testing.assert_close(trail.redone(output), tip)
        wish = torch.randn(tip.shape, dtype=torch.float64)
        moved = output + trail.undone(wish) / trail.scale(tip)
        torch.testing.assert_close(trail.redone(moved), tip + wish)


def _endings(model, *inputs):
    paths = [path for path, p in model.named_parameters() if p.ndim > 1]
    follower = EndingsOf(model, paths)
    with evaluating(model), torch.no_grad(), follower:
        model(*inputs)
    return follower.endings


class Layers(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.way = way

    def forward(self, x):
        return self.way(self, x)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        # A nonlinearity ends the trail.
        (lambda m, x: x + m.first(x).relu(), Ending(None, False)),
        (lambda m, x: x + m.first(x), Ending(None, True)),
        (lambda m, x: x + m.norm(m.first(x)), Ending("norm", True)),
        (lambda m, x: m.norm(m.first(x)).relu() + x, Ending("norm", False)),
        # In place, and from the other side.
        (lambda m, x: m.norm(m.first(x)).add_(x), Ending("norm", True)),
        (lambda m, x: x.clone().add_(m.first(x)), Ending(None, True)),
        # Somebody else reads what is added, before or after the normalisation.
        (lambda m, x: (lambda y: x + y + y.relu())(m.first(x)), Ending(None, False)),
        (lambda m, x: (lambda y: x + m.norm(y) + y.relu())(m.first(x)), Ending(None, False)),
        (lambda m, x: (lambda y: (x + y) + y)(m.first(x)), Ending(None, False)),
        (lambda m, x: m.second(m.first(x)) + x, Ending(None, False)),
        # A stream scaled by a number is not added as it is.
        (lambda m, x: torch.add(x, m.first(x), alpha=2), Ending(None, False)),
    ],
)
def test_endings(way, expected):
    assert _endings(Layers(way).eval(), torch.randn(3, 4))["first.weight"] == expected


def test_of_two_branches_the_first_to_run_has_the_addition():
    model = Layers(lambda m, x: m.first(x.relu()) + m.second(x)).eval()
    assert _endings(model, torch.randn(3, 4)) == {
        "first.weight": Ending(None, True),
        "second.weight": Ending(None, False),
    }


def test_a_stream_that_others_read_leaves_the_addition_to_the_branch():
    """A linear bottleneck: the stream is the output of a weight itself."""

    def way(m, x):
        stream = m.first(x)
        return stream + m.second(stream.relu())

    assert _endings(Layers(way).eval(), torch.randn(3, 4)) == {
        "first.weight": Ending(None, False),
        "second.weight": Ending(None, True),
    }


def test_weights_that_run_twice_are_left_out():
    model = Layers(lambda m, x: x + m.first(m.first(x).relu()) + m.second(x)).eval()
    assert list(_endings(model, torch.randn(3, 4))) == ["second.weight"]
