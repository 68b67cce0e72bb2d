import dataclasses

import numpy as np
import pytest

from autoprune.errors import PruningError
from autoprune.strategy.damage import Damage, probes
from autoprune.strategy.space import Candidate, Dimension, SearchSpace

SPACE = SearchSpace((Dimension("a", 3, 1), Dimension("b", 2, 1)), ("block",), (True,), ((1,),), 1)
SCORES = {"a": np.array([0.3, 0.1, 0.2]), "b": np.array([1.0, 5.0])}


def test_cumulative_scores_are_the_curve():
    damage = Damage.of_scores(SPACE, SCORES, cumulative=True)
    np.testing.assert_allclose(damage.groups[0], [0.3, 0.2, 0.1, 0.0])
    np.testing.assert_allclose(damage.groups[1], [5.0, 1.0, 0.0])


def test_single_scores_add_up():
    damage = Damage.of_scores(SPACE, SCORES, cumulative=False)
    np.testing.assert_allclose(damage.groups[0], [0.6, 0.3, 0.1, 0.0])


def test_sum_over_a_candidate():
    damage = Damage.of_scores(SPACE, SCORES, cumulative=True)
    widths = np.array([[2, 1], [2, 2], [3, 2]])
    keep = np.array([[True], [False], [True]])
    np.testing.assert_allclose(damage.at(SPACE, widths, keep), [1.1, 5.1, 0.0])


def test_quadratic():
    damage = Damage.quadratic(SPACE)
    np.testing.assert_allclose(damage.groups[1], [1.0, 0.25, 0.0])
    assert damage.blocks.tolist() == [1.0]


def test_missing_scores_are_named():
    with pytest.raises(PruningError, match="of b"):
        Damage.of_scores(SPACE, {"a": SCORES["a"]}, cumulative=True)


def test_a_block_costs_its_units_where_it_was_not_measured():
    assert Damage.of_scores(SPACE, SCORES, cumulative=False).blocks.tolist() == [6.0]


def test_what_was_measured_costs_that():
    damage = Damage.of_scores(SPACE, SCORES, cumulative=True)
    narrow, without = Candidate((1 / 3, 0.0), (False,)), Candidate((0.0, 0.0), (True,))
    found = damage.measured(SPACE, [narrow, without], [16.0, 81.0])
    widths, keep = SPACE.widths([narrow, without]), SPACE.keep([narrow, without])
    np.testing.assert_allclose(found.at(SPACE, widths, keep), [16**1.25, 81**1.25])
    # shapes stay, and the group that was not measured has the factor of the other
    np.testing.assert_allclose(found.groups[0], damage.groups[0] * 16**1.25 / 0.1)
    np.testing.assert_allclose(found.groups[1], damage.groups[1] * 16**1.25 / 0.1)

    unknown = damage.measured(SPACE, [narrow], [16.0])
    np.testing.assert_allclose(unknown.blocks, damage.blocks * 16**1.25 / 0.1)


def test_a_curve_that_costs_nothing_stays():
    free = Damage((np.zeros(4), np.array([5.0, 1.0, 0.0])), np.zeros(1))
    candidates = [Candidate((1 / 3, 0.0), (False,)), Candidate((0.0, 0.5), (False,))]
    found = free.measured(SPACE, candidates, [1.0, 0.0])
    np.testing.assert_array_equal(found.groups[0], np.zeros(4))
    np.testing.assert_array_equal(found.groups[1], np.zeros(3))
    same = free.measured(SPACE, [], [])
    np.testing.assert_array_equal(same.groups[1], free.groups[1])


def test_probes_change_one_thing_each():
    space = SearchSpace(
        (
            Dimension("halved", 16, 4, 4),
            Dimension("coarse", 20, 5, 16),
            Dimension("frozen", 8, 8),
            Dimension("inside", 8, 2),
        ),
        ("stays", "goes"),
        (False, True),
        ((), (3,)),
        1,
    )
    found = probes(space)
    assert space.widths(found).tolist() == [
        [12, 20, 8, 8],
        [16, 16, 8, 8],
        [16, 20, 8, 5],
        [16, 20, 8, 8],
    ]
    assert space.keep(found).tolist() == [[True, True]] * 3 + [[True, False]]
    assert len(probes(dataclasses.replace(space, max_dropped=0))) == 3
