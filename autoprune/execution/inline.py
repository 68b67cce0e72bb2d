"""Evaluates candidates one after the other in this process."""

from __future__ import annotations

from autoprune.evaluation import Evaluates
from autoprune.execution.driver import StudyDriver
from autoprune.execution.time_limit import TimeLimited


def run(
    driver: StudyDriver, evaluator: Evaluates, *, trial_time_limit: float | None = None
) -> None:
    """Evaluate what ``driver`` proposes until it proposes nothing more.

    Args:
        driver: Proposes candidates and stores evaluations.
        evaluator: Scores one candidate.
        trial_time_limit: Seconds after which an evaluation has failed.

    Raises:
        RunError: There is such a limit, and this is not the main thread.
    """
    if trial_time_limit is not None:
        evaluator = TimeLimited(evaluator, trial_time_limit)
    try:
        while (proposal := driver.propose()) is not None:
            driver.record(proposal.number, evaluator(proposal.candidate, proposal.bar))
    finally:
        driver.abandon()
