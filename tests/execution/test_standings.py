import dataclasses

import numpy as np
import pytest

from autoprune.execution.standings import Staircase, standing
from autoprune.strategy.pareto import hypervolume
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


@pytest.fixture(scope="module")
def dense():
    problem = analytic_problem()
    return AnalyticEvaluator(problem)(problem.space.dense())


def networks(dense, seed, count=60):
    """Networks with many ties in latency and in accuracy."""
    rng = np.random.default_rng(seed)
    return [
        dataclasses.replace(dense, latency_ms=float(ms), accuracy=float(accuracy), seconds=float(n))
        for n, (ms, accuracy) in enumerate(rng.integers(1, 12, (count, 2)) / (4.0, 12.0))
    ]


@pytest.mark.parametrize("seed", range(5))
def test_highest_of_those_as_fast_is_what_a_loop_over_all_finds(dense, seed):
    staircase, added = Staircase(), []
    for network in networks(dense, seed):
        staircase.add(network, network.accuracy)
        added.append(network)
        for latency_ms in (0.1, 0.25, 0.6, 1.5, 2.75, 9.0):
            as_fast = [n for n in added if n.latency_ms <= latency_ms]
            found = staircase.at(latency_ms)
            if not as_fast:
                assert found is None
                continue
            best = max(n.accuracy for n in as_fast)
            assert found.accuracy == best
            equals = [n for n in as_fast if n.accuracy == best]
            assert found is min(equals, key=lambda n: n.latency_ms)


@pytest.mark.parametrize("seed", range(5))
def test_area_is_the_hypervolume_of_all_that_was_added(dense, seed):
    staircase, found = Staircase(), networks(dense, seed)
    for network in found:
        staircase = staircase.with_(network, network.accuracy)
    expected = hypervolume(
        np.array([n.accuracy for n in found]),
        np.array([n.latency_ms for n in found]),
        dense_ms=2.6,
    )
    assert staircase.area(2.6) / 2.6 == pytest.approx(expected)


def test_one_network_more_leaves_the_staircase_as_it_was(dense):
    staircase = Staircase()
    staircase.add(dense, 0.5)
    staircase.with_(dataclasses.replace(dense, latency_ms=0.1), 0.9)
    assert staircase.at(0.2) is None
    assert Staircase().area(3.0) == 0.0


@pytest.mark.parametrize("costs", [("latency", "params"), ("latency", "params", "macs")])
def test_terraces_are_what_comparing_all_finds(dense, costs):
    rng = np.random.default_rng(len(costs))
    rows = rng.integers(1, 7, (80, 4))
    networks = [
        dataclasses.replace(
            dense, latency_ms=ms / 2.0, params=int(params), macs=int(macs), accuracy=high / 7.0
        )
        for ms, params, macs, high in rows.tolist()
    ]
    terraces, ends = standing(costs), (3.0, 5.0, 6.0)[: len(costs)]
    for count, network in enumerate(networks, start=1):
        terraces = terraces.with_(network, network.accuracy)
        values = np.array([[n.cost(name) for name in costs] for n in networks[:count]])
        for most in ((1.0, 2.0, 2.0), (2.5, 3.0, 6.0), (0.1, 9.0, 9.0)):
            within = (values <= most[: len(costs)]).all(axis=1)
            found = terraces.at(*most[: len(costs)])
            if not within.any():
                assert found is None
                continue
            heights = np.array([n.accuracy for n in networks[:count]])
            assert found.accuracy == heights[within].max()
    heights = np.array([n.accuracy for n in networks])
    expected = hypervolume(heights, values, dense_ms=np.array(ends))
    assert terraces.area(*ends) / np.prod(ends) == pytest.approx(expected)
    assert 0.0 < expected < 1.0


def test_one_cost_is_a_staircase_of_that_cost(dense):
    found = standing(("params",))
    found.add(dataclasses.replace(dense, params=3, latency_ms=9.0), 0.5)
    assert found.at(2.0) is None
    assert found.at(3.0).latency_ms == 9.0
    assert found.area(4.0) == 0.5
