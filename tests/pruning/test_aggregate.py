from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import PruningError, UnknownNameError
from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.pruning.aggregate import (
    NORMALISERS,
    REDUCERS,
    combine,
    magnitude,
    named_parameters,
    normalised,
    unit_rows,
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


DIVIDING = ["max", "mean", "none", "norm", "sentinel", "sum"]


@pytest.mark.parametrize("normaliser", DIVIDING)
def test_combine_leaves_a_site_of_zeros_without_a_say(normaliser):
    found = combine([np.zeros(2), np.array([1.0, 3.0])], normaliser=normaliser)
    assert found[1] == pytest.approx(3 * found[0])


def naive_normalised(scores, name):
    """Return the scores by the formula, one unit at a time in plain Python."""
    n = len(scores)
    mean = sum(scores) / n
    std = (sum((s - mean) ** 2 for s in scores) / n) ** 0.5
    result = []
    for s in scores:
        low, divisor = {
            "mean": (0, mean),
            "sum": (0, sum(scores)),
            "max": (0, max(scores)),
            "norm": (0, sum(t * t for t in scores) ** 0.5),
            "sentinel": (0, sorted(scores)[n // 2]),
            "standardise": (min(scores), max(scores) - min(scores)),
            "gaussian": (mean, std),
            "lamp": (0, sum(t for t in scores if t >= s)),
            "none": (0, 1),
        }[name]
        result.append((s - low) / (divisor or 1))
    return result


@pytest.mark.parametrize("name", sorted(NORMALISERS))
@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 2.0, 0.0], [4.0, 1.5], [7.0], [0.0, 0.0]])
def test_normalisers_equal_a_loop_over_the_formula(name, scores):
    expected = naive_normalised(scores, name)
    np.testing.assert_allclose(normalised(np.array(scores), name), expected, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(NORMALISERS))
def test_normalisers_do_not_hide_what_is_not_a_number(name):
    assert np.isnan(normalised(np.array([1.0, np.nan, 2.0]), name)).any()


@pytest.mark.parametrize("name", sorted(REDUCERS))
@pytest.mark.parametrize("normaliser", ["max", "none"])
def test_reducers_equal_a_loop_over_the_formula(name, normaliser):
    sites = [np.array([3.0, 1.0, 2.0]), np.array([0.0, 5.0, 1.0]), np.array([2.0, 2.0, 4.0])]
    found = combine(sites, normaliser=normaliser, reduce=name)
    for unit in range(3):
        column = [float(site[unit] / (site.max() if normaliser == "max" else 1)) for site in sites]
        product = column[0] * column[1] * column[2]
        expected = {
            "mean": sum(column) / 3,
            "sum": sum(column),
            "max": max(column),
            "prod": product,
            "first": column[0],
            "gate": column[2],
        }[name]
        assert found[unit] == pytest.approx(expected)


def test_the_isolated_entries_of_units_are_rows():
    values = torch.arange(24).reshape(2, 4, 3)
    found = unit_rows(values, site("w", 1, [[3, 0], [1, 2]]))
    moved = values.movedim(1, 0)
    for row, unit in zip(found, [[3, 0], [1, 2]], strict=True):
        assert row.tolist() == [float(v) for p in unit for v in moved[p].flatten()]


def test_an_unknown_reducer_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'maks'; did you mean 'max'\?"):
        combine([np.ones(2)], reduce="maks")


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
