from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.network.trace import trace
from autoprune.pruning.activations import (
    ColumnCriterion,
    ColumnMoments,
    Gatherer,
    by_path,
    columns,
    gather,
    known_readers,
)
from autoprune.pruning.importance.activation import Activation
from autoprune.pruning.importance.l2 import L2
from autoprune.pruning.reads import Reader
from autoprune.testing.networks import TINY_NETWORKS, tiny


class Kept(ColumnCriterion):
    """Keeps the moments it is given."""

    name = "kept"

    def __init__(self):
        super().__init__(normaliser="none")
        self.moments: list[ColumnMoments] = []

    def score_columns(self, moments, weights):
        self.moments.append(moments)
        return moments.mean


@pytest.mark.parametrize("sizes", [(7,), (1, 4, 2)])
def test_moments_are_those_of_all_values_however_they_arrive(sizes):
    case = tiny("flatten", dtype=torch.float64)
    batches = case.batches(*sizes)
    hidden = case.groups[1]
    criterion = Kept()
    criterion.score(dataclasses.replace(case.network, groups=(hidden,)), batches)
    (found,) = criterion.moments
    (reader,) = case.heard(hidden, batches)
    values = reader.inputs
    torch.testing.assert_close(found.mean, values.mean(0))
    torch.testing.assert_close(found.variance, values.var(0, correction=0))
    torch.testing.assert_close(found.absolute, values.abs().mean(0))
    torch.testing.assert_close(found.square, values.square().mean(0))
    torch.testing.assert_close(found.zeros, (values == 0).double().mean(0))


class Seen(Gatherer):
    def __init__(self):
        self.images = []

    def add(self, inputs, how, images):
        self.images.append((tuple(inputs.shape), images))


def test_gatherers_hear_every_reader_and_of_how_many_images():
    case = tiny("attention")
    known = known_readers(case.network)
    assert sorted(by_path(known)) == [
        "head.weight",
        "narrow.weight",
        "project.weight",
        "qkv.weight",
        "widen.weight",
    ]
    found = gather(case.network, case.batches(3, 2), known, lambda path: Seen())
    assert found["narrow.weight"].images == [((12, 10), 3), ((8, 10), 2)]
    assert found["head.weight"].images == [((3, 8), 3), ((2, 8), 2)]


def test_one_weight_may_read_several_groups():
    known = known_readers(tiny("concatenation").network)
    assert [name for name, _ in by_path(known)["merge.weight"]] == ["left", "right"]


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_columns_are_the_channels_of_the_input(name):
    case = tiny(name)
    known = known_readers(case.network)
    for group in case.groups:
        for reader, heard in zip(
            known[group.name], case.heard(group, case.batches(1)), strict=True
        ):
            places, rows = columns(reader, heard.weight)
            for unit in range(group.size):
                channels = heard.channels(unit)
                assert sorted(places[unit]) == sorted(channel for channel, _, _ in channels)
                for channel, conv_group, place in channels:
                    expected = heard.readers(conv_group)[:, place].flatten()
                    assert torch.equal(rows[channel], expected)


def test_columns_of_a_transposed_convolution_are_its_rows():
    weight = torch.randn(6, 2, 3, 3)
    reader = Reader(ParamSlice("w", 0, np.arange(6)[:, None]), conv_groups=2, transposed=True)
    places, rows = columns(reader, weight)
    assert places.tolist() == [[unit] for unit in range(6)]
    assert torch.equal(rows, weight.flatten(1))


class Plain(nn.Module):
    """A product with a bare parameter, whose role no module type tells, and a layer that idles."""

    def __init__(self):
        super().__init__()
        self.write = nn.Linear(192, 3)
        self.read = nn.Parameter(torch.randn(3, 5))
        self.spare = nn.Linear(4, 2)

    def forward(self, images):
        return self.write(images.flatten(1)).relu() @ self.read


def test_what_cannot_be_listened_to_is_scored_by_l2_and_listed():
    case = tiny("chain")
    with torch.random.fork_rng(devices=[]):
        network = trace(Plain().eval(), case.inputs)
    idle = ChannelGroup("idle", 4, (ParamSlice("spare.weight", 1, np.arange(4)[:, None]),))
    network = dataclasses.replace(network, groups=(*network.groups, idle))
    criterion = Activation()
    found = criterion.score(network, case.batches(3))
    assert criterion.notes == {
        "write": "not all readers are known; scored by L2 magnitude",
        "idle": "its readers never ran; scored by L2 magnitude",
    }
    for group, scores in L2().score(network).items():
        np.testing.assert_array_equal(found[group], scores)
