import json

import optuna
import pytest

from autoprune.execution.driver import Limits, StudyDriver
from autoprune.execution.ray.exchange import OVER, DriverExchange, decoded, encoded
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


@pytest.fixture
def driver():
    problem = analytic_problem(budget_ms=3.0)
    sampler = build_sampler("random", problem, seed=1)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    return StudyDriver(study, problem, limits=Limits(trials=3))


def test_proposals_go_out_and_results_and_failures_come_in(driver):
    evaluator = AnalyticEvaluator(driver.problem)
    exchange = DriverExchange(driver, evaluator)

    asked = [exchange.suggest(name) for name in "abc"]
    assert exchange.suggest("d") is None or driver.stopped
    for name, text in zip("ab", asked, strict=False):
        candidate, bar = decoded(text)
        exchange.finish(name, json.dumps(evaluator(candidate, bar).to_json()))
    exchange.fail("c", "worker died, twice: no detail")

    assert exchange.suggest("e") == OVER
    assert [record.complete for record in driver.records] == [True, True, False]
    assert driver.records[2].evaluation.reason == "worker died, twice: no detail"
    expected = [evaluator(decoded(text)[0]).loss for text in asked[:2]]
    assert [record.evaluation.loss for record in driver.records[:2]] == expected


def test_what_a_driver_raises_ends_the_search_and_is_kept(driver, monkeypatch):
    exchange = DriverExchange(driver, AnalyticEvaluator(driver.problem))
    proposal = exchange.suggest("a")
    monkeypatch.setattr(driver, "record", lambda *_: 1 / 0)

    exchange.fail("a", "told to")

    assert proposal != OVER
    assert isinstance(exchange.fault, ZeroDivisionError)
    assert exchange.suggest("b") == OVER


def test_proposal_survives_as_text(driver):
    proposal = driver.propose()
    assert decoded(encoded(proposal)) == (proposal.candidate, proposal.bar)
