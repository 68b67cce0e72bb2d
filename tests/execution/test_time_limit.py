import signal
import threading
import time

import pytest

from autoprune.errors import RunError
from autoprune.execution.time_limit import TimeLimited, alarm
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem


class Swallowing(AnalyticEvaluator):
    """Sleeps, and takes the first exception for its own."""

    def __call__(self, candidate, bar=()):
        for _ in range(2):
            try:
                time.sleep(30)
            except TimeoutError:
                continue
        return super().__call__(candidate, bar)


def test_evaluation_in_time_is_what_the_evaluator_returns():
    problem = analytic_problem()
    candidate = problem.space.dense()
    limited = TimeLimited(AnalyticEvaluator(problem), 30.0)
    assert limited(candidate) == AnalyticEvaluator(problem)(candidate)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("kind", [AnalyticEvaluator, Swallowing])
def test_evaluation_that_hangs_has_failed(kind):
    problem = analytic_problem()
    before = signal.getsignal(signal.SIGALRM)
    evaluator = kind(problem, seconds=30.0)
    started = time.monotonic()

    evaluation = TimeLimited(evaluator, 0.05)(problem.space.dense())

    assert evaluation.status == "failed"
    assert evaluation.reason == "TimeoutError: the evaluation took longer than 0.05 s"
    assert evaluation.latency_ms == pytest.approx(4.0)
    assert time.monotonic() - started < 25.0  # it did not wait for the sleep
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_threads_are_refused():
    raised = []

    def body():
        try:
            with alarm(1.0):
                pass
        except RunError as error:
            raised.append(str(error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert "needs the main thread" in raised[0]
