import numpy as np
import optuna
import pytest

from autoprune.execution import inline
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.run.ladder import UNIFORM, uniform_ladder
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


@pytest.fixture
def problem():
    return analytic_problem()


def searched(problem, trials):
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    driver = StudyDriver(study, problem, limits=Limits(trials))
    driver.record_dense(AnalyticEvaluator(problem)(problem.space.dense()))
    inline.run(driver, AnalyticEvaluator(problem))
    return driver


@pytest.mark.parametrize(("trials", "networks"), [(7, 0), (8, 1), (24, 3), (100, 5)])
def test_it_costs_at_most_an_eighth_of_the_search(problem, trials, networks):
    evaluator = AnalyticEvaluator(problem)
    ladder = uniform_ladder(searched(problem, trials), evaluator, print)

    assert len(evaluator.calls) == networks
    assert (ladder is None) == (networks == 0)


def test_every_group_loses_the_same_share(problem):
    built = []

    class Noting(AnalyticEvaluator):
        def __call__(self, candidate, bar=()):
            built.append(candidate)
            return super().__call__(candidate, bar)

    ladder = uniform_ladder(searched(problem, 24), Noting(problem), print)

    space = problem.space
    for candidate, widths in zip(built, space.widths(built), strict=True):
        shares = {width / size for width, size in zip(widths, space.sizes, strict=True)}
        assert max(shares) - min(shares) < 0.5 / min(space.sizes) + 1e-9, candidate
    # The least pruned, the most pruned, and one between.
    latencies = [network.latency_ms for network in ladder.networks]
    assert latencies[1] < latencies[2] < latencies[0]


def test_the_hypervolume_is_that_of_the_networks_so_far(problem):
    ladder = uniform_ladder(searched(problem, 24), AnalyticEvaluator(problem), print)

    dense_ms = problem.dense_ms
    budgets = np.linspace(0, dense_ms, 20_001)[1:] - dense_ms / 40_000
    for count, area in enumerate(ladder.hypervolume, start=1):
        some = ladder.networks[:count]
        best = np.max(
            [
                np.where(n.latency_ms <= budgets, n.accuracy, 0.0)
                for n in some
                if n.latency_ms < dense_ms
            ]
            or [np.zeros(len(budgets))],
            axis=0,
        )
        assert area == pytest.approx(best.mean(), abs=1e-3)
    assert ladder.hypervolume[-1] > 0.1


def test_a_run_that_goes_on_evaluates_nothing_again(problem):
    driver, first, second = searched(problem, 24), *(AnalyticEvaluator(problem) for _ in range(2))
    before = uniform_ladder(driver, first, print)

    assert uniform_ladder(driver, second, print) == before
    assert second.calls == []
    assert set(driver.study.user_attrs[UNIFORM]) == set(first.calls)


def test_a_network_that_fails_is_left_out(problem):
    driver = searched(problem, 24)
    calls = AnalyticEvaluator(problem)
    uniform_ladder(driver, calls, print)
    driver.study.set_user_attr(UNIFORM, {})
    said = []
    ladder = uniform_ladder(
        driver, AnalyticEvaluator(problem, failing=calls.calls[:1]), said.append
    )

    assert len(ladder.networks) == 2
    assert "failed" in said[0]
