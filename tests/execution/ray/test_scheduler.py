"""Which trial gets a worker that is free."""

import logging
import os
import time

import optuna
import pytest

from autoprune.execution.driver import Limits, StudyDriver
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

pytestmark = pytest.mark.ray


def test_nobody_is_chosen_until_a_trial_has_waited_too_long():
    pytest.importorskip("ray")
    from ray.tune.experiment import Trial

    from autoprune.execution.ray.scheduler import PatientScheduler

    now = [0.0]
    scheduler = PatientScheduler(patience_s=10.0, clock=lambda: now[0])
    first, second = Trial("none", stub=True), Trial("none", stub=True)
    scheduler.on_trial_add(None, first)
    now[0] = 4.0
    scheduler.on_trial_add(None, second)

    now[0] = 9.9
    assert scheduler.choose_trial_to_run(None) is None
    now[0] = 10.0
    assert scheduler.choose_trial_to_run(None) is first
    first.set_status("RUNNING")
    assert scheduler.choose_trial_to_run(None) is None
    now[0] = 14.0
    assert scheduler.choose_trial_to_run(None) is second
    first.set_status("PENDING")  # it begins again, and waits anew
    scheduler.on_trial_add(None, first)
    second.set_status("TERMINATED")
    assert scheduler.choose_trial_to_run(None) is None
    now[0] = 24.0
    assert scheduler.choose_trial_to_run(None) is first


class SlowToStart(AnalyticEvaluator):
    """Arrives at once on the first worker and seconds later on the others; notes who evaluates."""

    def __init__(self, problem, folder):
        super().__init__(problem, seconds=0.02)
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__.update(state)
        try:
            (self.folder / "first").mkdir()
        except FileExistsError:
            time.sleep(3.0)

    def __call__(self, candidate, bar=()):
        (self.folder / f"{os.getpid()}.pid").touch()
        return super().__call__(candidate, bar)


@pytest.mark.slow
def test_worker_that_starts_slowly_comes_up_while_others_evaluate(tmp_path):
    ray = pytest.importorskip("ray")
    from autoprune.execution import tune

    problem = analytic_problem(groups=11, budget_ms=8.0)
    seen = []

    def stops(progress):
        seen.append(len(list(tmp_path.glob("*.pid"))))
        if seen[-1] == 2:
            driver.stop("all workers are up")

    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=build_sampler("random", problem, seed=1)
    )
    driver = StudyDriver(study, problem, limits=Limits(1000), listeners=[stops])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tune._ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        try:
            tune.run(driver, SlowToStart(problem, tmp_path), workers=2, scratch=tmp_path / "ray")
        finally:
            ray.shutdown()

    assert driver.stopped == "all workers are up"
    assert seen[0] == 1  # alone at first, for longer than its evaluations take
    assert len(seen) > 5
