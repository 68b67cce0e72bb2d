"""What uniform pruning reaches: a few networks beside the search, to compare it with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from autoprune.evaluation import Evaluates, Evaluation
from autoprune.execution.driver import StudyDriver
from autoprune.report.data import NetworkFacts, UniformLadder
from autoprune.run.preparation import Say
from autoprune.strategy.goals import column
from autoprune.strategy.pareto import hypervolume
from autoprune.strategy.problem import Problem
from autoprune.strategy.samplers.uniform import UniformLadder as Rungs

#: Most networks, and the part of the search's evaluations that they may add.
MOST, SHARE = 5, 8
#: Where the study keeps their scores, so that a run that goes on does not evaluate them again.
UNIFORM = "uniform_ladder"


def uniform_ladder(driver: StudyDriver, evaluator: Evaluates, say: Say) -> UniformLadder | None:
    """Return networks pruned by one ratio everywhere, at most five and an eighth of the trials.

    They are no trials: no sampler sees them, and none of them is on the front. There are none where
    networks of the front are trained: their scores could not be compared.

    Args:
        driver: The search, ended.
        evaluator: Scores them as it scored the trials.
        say: Hears of those that gave no network.
    """
    if driver.rungs:  # the front's networks are trained, and these are not
        return None
    problem = driver.problem
    count = min(MOST, sum(record.counted for record in driver.records) // SHARE)
    known: dict[str, dict[str, Any]] = dict(driver.study.user_attrs.get(UNIFORM, {}))
    found: list[NetworkFacts] = []
    for candidate in Rungs(problem, seed=0).ladder[:count]:
        if candidate.key not in known:
            scores = evaluator(candidate)
            if scores.status == "failed":
                say(f"uniform pruning to {scores.latency_ms:.3g} ms failed: {scores.reason}")
                continue
            known[candidate.key] = dataclasses.asdict(_facts(scores))
            driver.study.set_user_attr(UNIFORM, known)
        found.append(NetworkFacts(**known[candidate.key]))
    return UniformLadder(tuple(found), _hypervolumes(found, problem)) if found else None


def _facts(scores: Evaluation) -> NetworkFacts:
    return NetworkFacts(
        accuracy=scores.accuracy,
        loss=scores.loss,
        latency_ms=scores.latency_ms,
        macs=scores.macs,
        params=scores.params,
        samples=scores.samples or None,
        extra={column(name): value for name, value in scores.costs.items()},
    )


def _hypervolumes(networks: list[NetworkFacts], problem: Problem) -> tuple[float, ...]:
    """Return the hypervolume after each network, as the search counts it."""
    columns = [column(name) for name in problem.goals.costs]
    flat = [network.flat() for network in networks]
    accuracy = np.array([values["accuracy"] for values in flat], float)
    if problem.goals.min_accuracy is not None:
        accuracy[accuracy < problem.goals.min_accuracy] = np.nan
    costs = np.array([[values[name] for name in columns] for values in flat], float)
    dense = problem.dense_costs
    return tuple(
        hypervolume(accuracy[:end], costs[:end], dense_ms=dense)
        for end in range(1, len(networks) + 1)
    )
