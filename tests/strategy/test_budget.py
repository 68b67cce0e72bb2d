import dataclasses
import math

import numpy as np
import pytest

from autoprune.errors import BudgetError
from autoprune.strategy.budget import check, fastest, first_within, project, widen
from autoprune.strategy.goals import Cost, Limit
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate, Dimension, SearchSpace
from autoprune.testing.samplers import MadeUpLatency, limited_problem, made_up_problem


def random_candidate(space, rng):
    return Candidate(
        tuple(rng.uniform(size=len(space.dimensions))),
        tuple((rng.uniform(size=len(space.blocks)) < 0.3).tolist()),
    )


def with_budget(problem, rng):
    """Return the problem with a random budget that can be met, often only just."""
    low, high = problem.fastest[1], problem.dense_ms
    share = rng.choice([0.0, rng.uniform()])
    return dataclasses.replace(problem, budget_ms=low + share * max(high - low, 0.0))


@pytest.mark.parametrize(("count", "monotone"), [(50, True), (200, False)])
def test_projections_are_within_the_budget(problems, count, monotone):
    rng = np.random.default_rng(0)
    moved = 0
    for problem in problems(count, monotone=monotone):
        bounded = with_budget(problem, rng)
        for fill in (True, False):
            candidate = random_candidate(problem.space, rng)
            result = project(bounded, candidate, fill=fill)
            assert problem.latency_ms([result])[0] <= bounded.budget_ms
            assert problem.space.snap(result) == result
            assert project(bounded, result, fill=fill) == result
            moved += problem.latency_ms([candidate])[0] > bounded.budget_ms
    assert moved > count / 2


@pytest.mark.parametrize("monotone", [True, False])
def test_nothing_more_fits(problems, monotone):
    rng = np.random.default_rng(1)
    for problem in problems(50, monotone=monotone):
        bounded = with_budget(problem, rng)
        candidate = random_candidate(problem.space, rng)
        over = problem.latency_ms([candidate])[0] > bounded.budget_ms
        result = project(bounded, candidate)
        ms = problem.latency_ms([result])[0]
        limit = bounded.budget_ms if over else ms
        space = problem.space
        widths, keep = space.widths([result])[0], space.keep([result])
        active = space.active(keep)[0]
        for index, dim in enumerate(space.dimensions):
            wider = dim.widths[dim.widths > widths[index]]
            if len(wider) and active[index]:
                row = widths.copy()
                row[index] = wider[0]
                assert problem.predict(row[None], keep)[0] > limit


def test_scaling_finds_the_smallest_scale(problems):
    rng = np.random.default_rng(2)
    compared = 0
    for problem in problems(100, monotone=True):
        bounded, space = with_budget(problem, rng), problem.space
        candidate = space.snap(random_candidate(space, rng))
        start = np.array(candidate.ratios)
        most = 1.0 - space.smallest_widths / space.sizes
        # Scan far finer than any step of these small groups.
        scales = np.linspace(0, 1, 2001)[:, None]
        ratios = start + scales * (most - start)
        widths, keep = space.realise(ratios, np.tile(np.array(candidate.dropped, bool), (2001, 1)))
        fits = np.flatnonzero(problem.predict(widths, keep) <= bounded.budget_ms)
        if len(fits):
            result = project(bounded, candidate, fill=False)
            assert space.widths([result]).tolist() == [widths[fits[0]].tolist()]
            compared += 1
    assert compared > 50


def test_blocks_are_dropped_only_if_widths_do_not_suffice():
    problem = made_up_problem(4, 32)
    space = problem.space
    narrowest = problem.latency_ms([space.smallest()])[0]
    kept = project(dataclasses.replace(problem, budget_ms=narrowest * 1.001), space.dense())
    assert not any(kept.dropped)
    fewer = project(dataclasses.replace(problem, budget_ms=narrowest * 0.95), space.dense())
    assert sum(fewer.dropped) == 1


def test_blocks_that_save_most_go_first():
    space = SearchSpace((), ("a", "b", "c"), (True,) * 3)

    def latency(widths, keep):
        return 1.0 + keep @ np.array([1.0, 3.0, 2.0])

    for budget, dropped in ((4.0, [1]), (2.0, [1, 2]), (1.0, [0, 1, 2])):
        result = project(Problem(space, latency, budget), space.dense())
        assert np.flatnonzero(result.dropped).tolist() == dropped


def test_drops_that_lead_nowhere_are_replaced():
    # Only one block may go, the candidate drops the wrong one.
    space = SearchSpace((), ("a", "b"), (True, True), (), 1)
    problem = Problem(space, lambda widths, keep: 1.0 + keep @ np.array([1.0, 3.0]), 2.5)
    assert project(problem, Candidate((), (True, False))).dropped == (False, True)


def test_replaced_drops_leave_the_widths_alone():
    space = SearchSpace((Dimension("g", 8, 1),), ("a", "b"), (True, True), (), 1)

    def latency(widths, keep):
        return 0.1 * widths[:, 0] + keep @ np.array([1.0, 3.0])

    problem = Problem(space, latency, 2.0)
    result = project(problem, Candidate((0.0,), (True, False)), fill=False)
    assert result == Candidate((0.0,), (False, True))


def test_few_predictor_calls_are_made():
    staircase = MadeUpLatency(padding=8)
    problem = made_up_problem(40, 256, latency=staircase, multiple=1, budget=0.4)
    calls = []

    def counted(widths, keep):
        calls.append(len(widths))
        return problem.latency(widths, keep)

    rng = np.random.default_rng(0)
    ratios = tuple(rng.uniform(0, 0.3, 41))
    project(dataclasses.replace(problem, latency=counted), Candidate(ratios, (False,) * 40))
    assert len(calls) < 40
    assert sum(calls) < 10_000


@pytest.mark.parametrize("multiple", [1, 8])
def test_budgets_are_used(multiple):
    problem = made_up_problem(20, 128, multiple=multiple, latency=MadeUpLatency(), budget=0.4)
    rng = np.random.default_rng(0)
    for _ in range(10):
        candidate = Candidate(tuple(rng.uniform(0, 0.3, 21)), (False,) * 20)
        assert problem.latency_ms([candidate])[0] > problem.budget_ms
        ms = problem.latency_ms([project(problem, candidate)])[0]
        assert 0.995 * problem.budget_ms < ms <= problem.budget_ms


def test_candidates_inside_the_budget_stay():
    problem = made_up_problem(budget=0.9)
    candidate = problem.space.snap(Candidate((0.5,) * 7, (False,) * 6))
    assert project(problem, candidate) == candidate


def test_units_that_cost_nothing_come_back():
    # Channels are computed in eights, so 9 cost as much as 16.
    problem = made_up_problem(2, 32, latency=MadeUpLatency(padding=8), multiple=1)
    space = problem.space
    given = space.candidates(np.array([[9, 17, 8]]), np.ones((1, 2), bool))[0]
    assert space.widths([project(problem, given)]).tolist() == [[16, 24, 8]]
    assert project(problem, given, fill=False) == given


def test_without_a_budget_latency_stays():
    problem = made_up_problem(latency=MadeUpLatency(padding=4, bumps=0.3), multiple=1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        candidate = random_candidate(problem.space, rng)
        before, after = problem.latency_ms([candidate, project(problem, candidate)])
        assert after <= before * (1 + 1e-9)


def test_a_tighter_budget_can_be_given():
    problem = made_up_problem(budget=0.8)
    result = project(problem, problem.space.dense(), budget_ms=0.3 * problem.dense_ms)
    assert problem.latency_ms([result])[0] <= 0.3 * problem.dense_ms


def test_impossible_budgets_say_what_is_possible():
    problem = dataclasses.replace(made_up_problem(droppable=False), budget_ms=1e-3)
    reachable = f"{problem.fastest[1]:.6g} ms"
    with pytest.raises(BudgetError, match=reachable) as caught:
        check(problem)
    assert f"{problem.dense_ms:.6g} ms" in str(caught.value)
    with pytest.raises(BudgetError, match=reachable):
        project(problem, problem.space.dense())


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_budgets_are_positive_numbers(budget):
    with pytest.raises(BudgetError, match="positive number of ms"):
        check(dataclasses.replace(made_up_problem(), budget_ms=budget))


def test_budgets_that_can_be_met_pass():
    problem = made_up_problem()
    candidate, ms = fastest(problem)
    assert ms == problem.latency_ms([candidate])[0]
    check(problem)
    check(dataclasses.replace(problem, budget_ms=ms))


def test_a_predictor_that_contradicts_itself_is_reported():
    # Alone every candidate is slower than beside others.
    problem = made_up_problem(budget=0.5)

    def fickle(widths, keep):
        return problem.latency(widths, keep) + (100.0 if len(widths) == 1 else 0.0)

    with pytest.raises(BudgetError, match="contradicts itself"):
        project(dataclasses.replace(problem, latency=fickle), problem.space.dense())


def test_rounding_between_batches_is_survived():
    # A last-digit difference between one row and many, as matrix products have.
    problem = made_up_problem(budget=0.5)

    def noisy(widths, keep):
        ms = problem.latency(widths, keep)
        return ms * (1 + 1e-15) if len(widths) == 1 else ms

    doubtful = dataclasses.replace(problem, latency=noisy)
    reached = project(problem, problem.space.dense())
    exact = dataclasses.replace(doubtful, budget_ms=float(problem.latency_ms([reached])[0]))
    result = project(exact, problem.space.dense())
    assert doubtful.latency_ms([result])[0] <= exact.budget_ms


def test_first_within_takes_the_first_of_a_bumpy_path():
    space = SearchSpace((Dimension("g", 1000, 1),))
    # Fast enough in [300, 320] and below 100 only.
    problem = Problem(
        space,
        lambda widths, keep: np.where(
            (abs(widths[:, 0] - 310) <= 10) | (widths[:, 0] < 100), 1.0, 2.0
        ),
    )

    def path(positions):
        return space.realise(positions[:, None], np.zeros((len(positions), 0), bool))

    widths, _ = first_within(problem, path, 1.5)
    assert widths.tolist() == [[320]]
    assert first_within(problem, path, 0.5) is None


def test_widening_stops_at_the_ceiling():
    problem = made_up_problem(2, 32)
    keep = np.ones((1, 2), bool)
    start = np.array([[8, 8, 8]])
    ceiling = np.array([16, 8, 4])
    got = widen(problem, start, keep, math.inf, ceiling=ceiling)
    assert got.tolist() == [[16, 8, 8]]


class TestLimits:
    """Limits beside the budget."""

    def test_a_candidate_over_a_limit_is_slower_than_all_that_is_allowed(self):
        problem = limited_problem(0.5)
        rng = np.random.default_rng(0)
        ratios = rng.uniform(size=(300, 7)) * rng.uniform(size=(300, 1))
        widths, keep = problem.space.realise(ratios, rng.uniform(size=(300, 6)) < 0.2)
        values = np.stack([m.cost.measure(widths, keep) / m.most for m in problem.limits])
        over = values.max(axis=0) > 1.0
        assert 0 < over.sum() < 300
        shown, true = problem.predict(widths, keep), problem.latency(widths, keep)
        assert (shown[~over] == true[~over]).all()
        assert (shown[over] > problem.ceiling_ms).all()
        # What is more over is slower, so that there is a way back.
        worst = values.max(axis=0)[over]
        slow = true[over] < problem.ceiling_ms
        assert (np.diff(shown[over][slow][np.argsort(worst[slow])]) > -1e-6).all()

    @pytest.mark.parametrize("budget", [None, 0.3])
    def test_projection_meets_them_and_leaves_nothing_unused(self, budget):
        problem = limited_problem(budget)
        rng = np.random.default_rng(1)
        for _ in range(20):
            ratios = tuple(rng.uniform(0.0, 0.7, 7).tolist())
            asked = Candidate(ratios, (False,) * 6)
            found = project(problem, asked)
            widths, keep = problem.space.widths([found]), problem.space.keep([found])
            used = [float(m.cost.measure(widths, keep)[0]) / m.most for m in problem.limits]
            used.append(float(problem.latency(widths, keep)[0]) / problem.limit_ms)
            assert max(used) <= 1.0
            # Some limit binds: the next wider network of any group is over one.
            wider = widths + np.eye(7, dtype=int)
            wider = np.minimum(wider, problem.space.sizes)[(widths < problem.space.sizes)[0]]
            kept = np.repeat(keep, len(wider), axis=0)
            if problem.latency_ms([asked])[0] > problem.limit_ms:
                assert (problem.predict(wider, kept) > problem.limit_ms).all()

    def test_what_is_impossible_alone_is_named_with_what_can_be_reached(self):
        problem = limited_problem(0.5)
        least = float(
            problem.limits[0].cost.measure(
                problem.space.smallest_widths[None], np.zeros((1, 6), bool)
            )[0]
        )
        few = dataclasses.replace(problem.limits[0], most=2.0)
        with pytest.raises(BudgetError, match=r"2 params.*least.*params.*relax a limit") as error:
            check(dataclasses.replace(problem, limits=(few, problem.limits[1])))
        # At most half of the blocks go, so three inner units stay beside the residual path's.
        assert least == 3.0
        assert "6 params" in str(error.value)

    def test_what_is_impossible_together_says_how_near_it_gets(self):
        problem = limited_problem(None)
        half = problem.limits[1]

        def rest(widths, keep):
            # The more latency the less of this: both low at once cannot be.
            return 1.0 / half.cost.measure(widths, keep)

        dense = problem.space.widths([problem.space.dense()])
        kept = np.ones((1, 6), bool)
        against = Limit(Cost("params", rest), 1.01 * float(rest(dense, kept)[0]))
        with pytest.raises(BudgetError, match="together, the nearest that was found has"):
            check(dataclasses.replace(problem, limits=(half, against)))
