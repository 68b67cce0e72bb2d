import logging
import os

import optuna
import pytest

from autoprune.errors import RunError
from autoprune.execution import inline
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def tune():
    """The executor, on a Ray that is started once for this file."""
    ray = pytest.importorskip("ray")
    from autoprune.execution import tune

    with pytest.MonkeyPatch.context() as patch:
        for name, value in tune._ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
        )
        yield tune
        ray.shutdown()


def driver_for(problem, *, trials, **options):
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=build_sampler("tpe", problem, seed=1)
    )
    return StudyDriver(study, problem, limits=Limits(trials), **options)


def test_one_worker_gives_what_inline_gives(tune, tmp_path, capfd):
    problem = analytic_problem(budget_ms=3.0)
    here, there = driver_for(problem, trials=15), driver_for(problem, trials=15)
    environment = dict(os.environ)

    inline.run(here, AnalyticEvaluator(problem))
    tune.run(there, AnalyticEvaluator(problem), workers=1, scratch=tmp_path / "ray")

    assert there.records == here.records
    assert there.stopped == here.stopped
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_dead_worker_is_a_failed_trial_and_the_others_go_on(tune, tmp_path):
    problem = analytic_problem(budget_ms=3.0)
    reference = driver_for(problem, trials=3)
    inline.run(reference, AnalyticEvaluator(problem))
    deadly = [reference.records[1].evaluation.candidate.key]
    driver = driver_for(problem, trials=6)

    tune.run(driver, AnalyticEvaluator(problem, deadly=deadly), workers=2, scratch=tmp_path / "ray")

    by_number = {record.number: record.evaluation for record in driver.records}
    assert [by_number[n].status for n in range(6)] == ["complete", "failed", *["complete"] * 4]
    assert "worker died, twice" in by_number[1].reason
    assert by_number[1].latency_ms <= 3.0


def test_fault_in_the_driver_is_raised_and_not_only_logged(tune, tmp_path):
    problem = analytic_problem()

    def listener(progress):
        raise OSError("disk full")

    driver = driver_for(problem, trials=4, listeners=[listener])
    with pytest.raises(OSError, match="disk full"):
        tune.run(driver, AnalyticEvaluator(problem), workers=1, scratch=tmp_path / "ray")

    assert len(driver.records) == 1


class Unpicklable(AnalyticEvaluator):
    def __reduce__(self):
        raise TypeError("cannot pickle a dream")


class Unloadable(AnalyticEvaluator):
    def __reduce__(self):
        return int, ("no number",)  # fails in the worker


def test_evaluator_that_cannot_be_sent_is_refused(tune, tmp_path):
    problem = analytic_problem()
    with pytest.raises(RunError, match=r"cannot be sent to worker.*dream.*executor 'inline'"):
        tune.run(
            driver_for(problem, trials=2), Unpicklable(problem), workers=1, scratch=tmp_path / "ray"
        )


def test_worker_that_cannot_be_made_says_why(tune, tmp_path):
    problem = analytic_problem()
    driver = driver_for(problem, trials=1)
    tune.run(driver, Unloadable(problem), workers=1, scratch=tmp_path / "ray")
    (record,) = driver.records
    assert not record.complete
    assert "invalid literal for int() with base 10: 'no number'" in record.evaluation.reason


def test_torchvision_model_reaches_a_worker_beside_any_torch(tune, tmp_path):
    from autoprune.network.vision import build_torchvision

    problem = analytic_problem()
    evaluator = AnalyticEvaluator(problem)
    evaluator.model = build_torchvision("squeezenet1_1")  # opened before every evaluation
    driver = driver_for(problem, trials=1)
    tune.run(driver, evaluator, workers=1, scratch=tmp_path / "ray")
    assert [record.evaluation.reason for record in driver.records] == [""]
