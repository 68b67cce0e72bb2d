from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import PruningError, UnknownNameError
from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.pruning.aggregate import (
    NORMALISERS,
    combine,
    magnitude,
    named_parameters,
    unit_sums,
    weight_sites,
)


def site(path: str, dim: int, positions: list[list[int]]) -> ParamSlice:
    return ParamSlice(path, dim, np.array(positions))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_unit_sums_adds_every_entry_of_a_unit(dim):
    values = torch.randn(6, 6, 6, dtype=torch.float64)
    positions = [[0, 3], [5, 1], [2, 4]]
    found = unit_sums(values, site("w", dim, positions))
    moved = values.movedim(dim, 0)
    expected = [sum(float(moved[p].sum()) for p in unit) for unit in positions]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_unit_sums_of_a_vector_adds_nothing_else():
    found = unit_sums(torch.tensor([1.0, 2.0, 4.0]), site("b", 0, [[2], [0]]))
    np.testing.assert_array_equal(found, [4.0, 1.0])


def test_unit_sums_in_half_precision_do_not_overflow():
    values = torch.full((1, 4096), 60000.0, dtype=torch.float16)
    assert unit_sums(values, site("w", 0, [[0]]))[0] == pytest.approx(60000 * 4096, rel=1e-3)


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [
        ("mean", [(1 / 2 + 30 / 15) / 2, (3 / 2 + 0) / 2]),
        ("sum", [(1 / 4 + 1) / 2, (3 / 4 + 0) / 2]),
        ("max", [(1 / 3 + 1) / 2, (1 + 0) / 2]),
        ("none", [31 / 2, 3 / 2]),
    ],
)
def test_combine_normalises_each_site_before_averaging(normaliser, expected):
    found = combine([np.array([1.0, 3.0]), np.array([30.0, 0.0])], normaliser=normaliser)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("normaliser", sorted(NORMALISERS))
def test_combine_leaves_a_site_of_zeros_without_a_say(normaliser):
    found = combine([np.zeros(2), np.array([1.0, 3.0])], normaliser=normaliser)
    assert found[1] == pytest.approx(3 * found[0])
    np.testing.assert_array_equal(combine([np.zeros(2)], normaliser=normaliser), [0.0, 0.0])


def test_an_unknown_normaliser_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'maen'; did you mean 'mean'\?"):
        combine([np.ones(2)], normaliser="maen")


def test_weights_have_two_dimensions_and_are_no_buffers():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    each = [[0], [1], [2], [3]]
    paths = ["0.weight", "0.bias", "1.weight", "1.running_mean"]
    members = (*(site(path, 0, each) for path in paths), site("2.weight", 1, each))
    group = ChannelGroup("0", 4, members)
    found = weight_sites(group, named_parameters(model))
    assert [(member.path, member.dim) for member, _ in found] == [("0.weight", 0), ("2.weight", 1)]


def test_a_group_of_vectors_is_scored_by_its_vectors():
    parameters = {"scale": torch.tensor([1.0, -3.0]), "shift": torch.tensor([0.0, 2.0])}
    members = (site("scale", 0, [[0], [1]]), site("shift", 0, [[0], [1]]))
    found = magnitude(ChannelGroup("scale", 2, members), parameters, power=1)
    np.testing.assert_allclose(found, [(1 / 2 + 0) / 2, (3 / 2 + 2) / 2])


def test_a_group_without_parameters_is_refused():
    group = ChannelGroup("ghost", 2, (site("norm.running_mean", 0, [[0], [1]]),))
    with pytest.raises(PruningError, match="'ghost' should cut at least one parameter"):
        magnitude(group, {}, power=1)


def test_tied_parameters_are_found_under_each_name():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    parameters = named_parameters(model)
    assert parameters["a.weight"] is parameters["b.weight"]
