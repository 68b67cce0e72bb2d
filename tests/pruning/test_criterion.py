from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import autoprune
from autoprune.errors import PruningError, UnknownNameError
from autoprune.pruning.criterion import CRITERIA, Criterion, build_criterion
from autoprune.testing.networks import tiny


class Given(Criterion):
    """Returns the scores it was given."""

    name = "given"
    needs = "inputs"
    family = "baseline"

    def __init__(self, scores):
        self.scores = scores

    def _score(self, network, batches):
        return self.scores


def test_every_criterion_is_in_the_documentation_with_what_it_needs_and_its_family():
    page = (Path(autoprune.__file__).parents[1] / "docs" / "criteria.md").read_text()
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:4])
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    found = [
        (f"`{name}`", CRITERIA[name].needs, CRITERIA[name].family) for name in CRITERIA.names()
    ]
    assert len(found) >= 25
    assert sorted(rows) == sorted(found)


def test_an_unknown_criterion_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'tailor'; did you mean 'taylor'\?"):
        CRITERIA["tailor"]


def test_only_a_criterion_that_draws_numbers_gets_the_seed():
    network = tiny("chain").network
    drawn = [build_criterion("random", seed=seed).score(network)["conv1"] for seed in (1, 1, 2)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    for name in CRITERIA.names():
        assert build_criterion(name, seed=1).name == name


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"conv1": np.ones(8)}, "6 scores for group 'conv2', but gave nothing"),
        ({"conv1": np.ones(7), "conv2": np.ones(6)}, r"8 scores .* array of shape \(7,\)"),
        (
            {"conv1": np.ones(8), "conv2": np.array([0, 1, np.inf, np.nan, 0, 0])},
            r"2 of 6 scores for group 'conv2' .* \(first: unit 2\)",
        ),
    ],
)
def test_scores_are_checked(scores, message):
    case = tiny("chain")
    with pytest.raises(PruningError, match=message):
        Given(scores).score(case.network, case.batches(2))


def test_missing_batches_are_refused_with_a_way_out():
    with pytest.raises(PruningError, match="'given' needs inputs and got no batches; pass task"):
        Given({}).score(tiny("chain").network)


def test_notes_are_those_of_the_last_call():
    criterion = CRITERIA["bn_scale"]()
    assert criterion.notes == {}
    criterion.score(tiny("flatten").network)
    assert list(criterion.notes) == ["hidden"]
    criterion.score(tiny("chain").network)
    assert criterion.notes == {}
