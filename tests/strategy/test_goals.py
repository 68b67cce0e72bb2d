import numpy as np
import pytest

from autoprune.errors import ProfileError
from autoprune.strategy.goals import Cost, Goals, Limit, column


def units(widths, keep):
    return widths.sum(axis=1) * 1.0


def test_a_limit_is_used_up_at_its_value():
    widths, keep = np.array([[3, 4], [3, 5]]), np.ones((2, 1), bool)
    share = Limit(Cost("params", units), 7.0).share(widths, keep)
    assert share.tolist() == [1.0, 8.0 / 7.0]


def test_predictions_stay_below_their_limit_by_more_than_rounding():
    widths, keep = np.array([[3, 4]]), np.ones((1, 1), bool)
    share = Limit(Cost("latency@board", units), 7.0).share(widths, keep)
    assert 1.0 < share[0] < 1.0 + 1e-8


@pytest.mark.parametrize("wrong", [lambda w, k: np.full(len(w), np.nan), lambda w, k: np.zeros(3)])
def test_what_measures_wrongly_is_named(wrong):
    with pytest.raises(ProfileError, match="energy@board"):
        Cost("energy@board", wrong).values(np.ones((2, 2), int), np.ones((2, 1), bool))


def test_goals_name_what_other_searches_do_not_know():
    goals = Goals(
        costs=("latency", "latency@board", "params"), limits={"memory": 2.0, "params": 3.0}
    )
    assert goals.extra == ("latency@board", "memory")
    assert [column(name) for name in goals.extra] == ["latency_ms@board", "memory_mb"]
    assert Goals().extra == ()
