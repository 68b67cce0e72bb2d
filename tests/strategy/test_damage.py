import numpy as np
import pytest

from autoprune.errors import PruningError
from autoprune.strategy.damage import Damage
from autoprune.strategy.space import Dimension, SearchSpace

SPACE = SearchSpace((Dimension("a", 3, 1), Dimension("b", 2, 1)), ("block",), (True,), ((1,),), 1)
SCORES = {"a": np.array([0.3, 0.1, 0.2]), "b": np.array([1.0, 5.0])}


def test_cumulative_scores_are_the_curve():
    damage = Damage.of_scores(SPACE, SCORES, {"block": 4.0}, cumulative=True)
    np.testing.assert_allclose(damage.groups[0], [0.3, 0.2, 0.1, 0.0])
    np.testing.assert_allclose(damage.groups[1], [5.0, 1.0, 0.0])


def test_single_scores_add_up():
    damage = Damage.of_scores(SPACE, SCORES, {"block": 4.0}, cumulative=False)
    np.testing.assert_allclose(damage.groups[0], [0.6, 0.3, 0.1, 0.0])


def test_sum_over_a_candidate():
    damage = Damage.of_scores(SPACE, SCORES, {"block": 4.0}, cumulative=True)
    widths = np.array([[2, 1], [2, 2], [3, 2]])
    keep = np.array([[True], [False], [True]])
    np.testing.assert_allclose(damage.at(SPACE, widths, keep), [1.1, 4.1, 0.0])


def test_quadratic():
    damage = Damage.quadratic(SPACE)
    np.testing.assert_allclose(damage.groups[1], [1.0, 0.25, 0.0])
    assert damage.blocks.tolist() == [1.0]


def test_missing_scores_are_named():
    with pytest.raises(PruningError, match="of b"):
        Damage.of_scores(SPACE, {"a": SCORES["a"]}, {}, cumulative=True)


def test_a_block_costs_its_units_where_it_was_not_measured():
    known = Damage.of_scores(SPACE, SCORES, {"block": 4.0}, cumulative=False)
    unknown = Damage.of_scores(SPACE, SCORES, {}, cumulative=False)
    assert known.blocks.tolist() == [4.0]
    assert unknown.blocks.tolist() == [6.0]
