import dataclasses
import math

import numpy as np
import pytest

from autoprune.errors import ProfileError
from autoprune.strategy.problem import Problem
from autoprune.testing.samplers import made_up_problem


def test_latency_is_that_of_widths_and_blocks():
    problem = made_up_problem(2, 8)
    space = problem.space
    dense, smallest = space.dense(), space.smallest()
    expected = problem.latency(np.array([[8, 8, 8], [2, 2, 2]]), np.ones((2, 2), bool))
    assert problem.latency_ms([dense, smallest]).tolist() == expected.tolist()
    assert problem.dense_ms == expected[0]


def test_no_candidates_are_not_predicted():
    def never(widths, keep):
        raise AssertionError("called without rows")

    assert Problem(made_up_problem().space, never).latency_ms([]).shape == (0,)


@pytest.mark.parametrize(
    "answer", [lambda n: np.full(n, math.nan), lambda n: np.ones(n + 1), lambda n: np.ones((n, 1))]
)
def test_broken_predictors_are_reported(answer):
    problem = Problem(made_up_problem().space, lambda widths, keep: answer(len(widths)))
    with pytest.raises(ProfileError, match="one finite number for each of 1 candidates"):
        problem.latency_ms([problem.space.dense()])


def test_logarithm_of_losses_is_finite_where_the_unpruned_network_has_none():
    problem = made_up_problem()
    losses = np.array([0.0, 0.5])
    assert problem.log_loss(losses).tolist() == [math.log(1e-12), math.log(0.5)]
    divergences = dataclasses.replace(problem, loss_offset=0.05)
    np.testing.assert_allclose(divergences.log_loss(losses), np.log([0.05, 0.55]))
