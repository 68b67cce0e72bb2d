from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.trace import trace
from autoprune.pruning.importance.lamp import Lamp
from autoprune.pruning.isomorphic import isomorphic, thresholds
from autoprune.testing.networks import tiny


class Layers(nn.Module):
    """Two equal layers of different width, one with another kernel, and one that is depthwise."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        inner = [(4, 3, 1), (6, 3, 1), (4, 1, 1), (8, 3, 8)]
        self.reduce = nn.ModuleList(
            nn.Conv2d(8, width, kernel, padding=kernel // 2, groups=groups)
            for width, kernel, groups in inner
        )
        self.expand = nn.ModuleList(nn.Conv2d(width, 8, 1) for width, _, _ in inner)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for reduce, expand in zip(self.reduce, self.expand, strict=True):
            x = x + expand(reduce(x).relu())
        return self.head(x.mean((2, 3)))


def test_classes_have_the_same_structure_whatever_their_width():
    network = trace(Layers().eval(), (torch.randn(1, 3, 8, 8),))
    classes = isomorphic(network)
    assert ("reduce.0", "reduce.1") in classes
    assert ("reduce.2",) in classes
    assert sorted(name for names in classes for name in names) == sorted(
        group.name for group in network.groups
    )


def test_kinds_differ():
    network = tiny("attention").network
    assert isomorphic(network) == (("patch",), ("qkv",), ("widen",))
    hidden = network.groups[2]
    both = (hidden, dataclasses.replace(hidden, name="other", kind="head"))
    assert isomorphic(dataclasses.replace(network, groups=both)) == (("widen",), ("other",))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9])
def test_thresholds_cut_their_share_of_every_class(ratio):
    network = tiny("concatenation").network
    scores = Lamp().score(network)
    classes = isomorphic(network)
    found = thresholds(scores, classes, ratio=ratio)
    for names in classes:
        everyone = [(score, name) for name in names for score in scores[name]]
        gone = sorted(everyone)[: int(ratio * len(everyone))]
        below = [(score, name) for score, name in everyone if score < found[name]]
        assert sorted(below) == gone


def test_units_that_share_the_border_stay():
    found = thresholds({"a": np.array([1.0, 1.0, 1.0, 2.0])}, [("a",)], ratio=0.5)
    assert found == {"a": 1.0}


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_ratios_are_fractions(ratio):
    with pytest.raises(PruningError, match=r"ratio in \[0, 1\), the fraction removed"):
        thresholds({}, [], ratio=ratio)
