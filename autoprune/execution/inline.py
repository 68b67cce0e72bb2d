"""Evaluates candidates one after the other in this process."""

from __future__ import annotations

from autoprune.evaluation import Evaluates
from autoprune.execution.driver import StudyDriver


def run(driver: StudyDriver, evaluator: Evaluates) -> None:
    """Evaluate what ``driver`` proposes until it proposes nothing more.

    Args:
        driver: Proposes candidates and stores evaluations.
        evaluator: Scores one candidate.
    """
    try:
        while (proposal := driver.propose()) is not None:
            driver.record(proposal.number, evaluator(proposal.candidate, proposal.bar))
    finally:
        driver.abandon()
