import dataclasses

import pytest

from autoprune.errors import BudgetError
from autoprune.strategy.exhaustion import MOST, every_candidate
from autoprune.strategy.goals import LATENCY, Cost
from autoprune.testing.samplers import made_up_problem


@pytest.mark.parametrize("budgeted", [False, True])
def test_equals_what_no_wider_candidate_within_the_budget_is_as_fast_as(
    problems, enumerate_all, budgeted
):
    compared = 0
    for free in problems(20, monotone=True, coupled=False):
        everything = enumerate_all(free.space)
        if len(everything) > 60 or every_candidate(free) is None:
            continue
        low, high = free.fastest[1], free.dense_ms
        problem = dataclasses.replace(free, budget_ms=(low + high) / 2) if budgeted else free
        found = every_candidate(problem)
        ms = dict(zip(everything, free.latency_ms(everything), strict=True))
        limit = problem.budget_ms if budgeted else high
        for candidate in found:
            assert ms[candidate] <= limit + 1e-9
        # Whatever is within the budget has a listed one that is as fast and nowhere narrower.
        for candidate in everything:
            if ms[candidate] > limit or any(candidate.dropped):
                continue
            assert any(
                ms[other] <= ms[candidate] + 1e-9
                and not any(other.dropped)
                and all(a <= b + 1e-9 for a, b in zip(other.ratios, candidate.ratios, strict=True))
                for other in found
            )
        compared += 1
    assert compared >= 5


def test_nothing_is_listed_where_it_would_not_be_all():
    assert every_candidate(made_up_problem(4, 32)) is None
    small = made_up_problem(2, 8, multiple=4)
    assert 2 <= len(every_candidate(small)) <= MOST
    assert (
        every_candidate(dataclasses.replace(small, costs=(Cost(LATENCY, small.latency),))) is None
    )


def test_an_unreachable_budget_is_the_usual_error():
    with pytest.raises(BudgetError):
        every_candidate(dataclasses.replace(made_up_problem(2, 8, multiple=4), budget_ms=1e-6))
