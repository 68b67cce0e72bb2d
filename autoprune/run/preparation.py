"""Builds and checks everything a search stands on, before anything is written."""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.errors import ModelError, PruningError, TaskError
from autoprune.evaluation import Metric, Planner
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import DeviceProfile
from autoprune.latency.roofline import Predictor
from autoprune.network.network import Network
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.criterion import CRITERIA, Batches, build_criterion
from autoprune.pruning.distances import answer_distances
from autoprune.pruning.merge import Calibrated
from autoprune.pruning.realiser import REALISERS
from autoprune.pruning.verify import verified
from autoprune.run.goals import Measures
from autoprune.run.settings import RunSettings
from autoprune.strategy.budget import check
from autoprune.strategy.damage import Damage, probes
from autoprune.strategy.expansion import space_latency, space_ops, space_scores
from autoprune.strategy.problem import DIVERGENCE_OFFSET, Problem
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import SearchSpace, build_space, ties_isomorphic
from autoprune.tasks.base import SampledTask, Task, needs_samples, run_batches
from autoprune.tasks.classification import ClassificationTask
from autoprune.tasks.load import load_task
from autoprune.tasks.numerics import Numerics, numerics_for

#: After so many measured groups it is known how long all take.
_TIMED = 2

#: Hears what a user should know, one sentence at a time.
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything a search stands on, built and checked.

    Attributes:
        task: Data and metric.
        network: The traced and verified network.
        predictor: Latency of its candidates.
        problem: Search space, latency and budget, with what is known of each unit; at least one
            candidate meets the budget.
        calibrated: What calibration data tell about the network; ``None`` where nothing reads it.
        numerics: How networks run while they are scored on the search split.
        metric: What is minimised beside latency.
    """

    task: Task
    network: Network
    predictor: Predictor
    problem: Problem
    calibrated: Calibrated | None
    numerics: Numerics
    metric: Metric


def prepare(
    settings: RunSettings,
    space_settings: SpaceSettings,
    profile: DeviceProfile,
    *,
    others: Mapping[str, DeviceProfile] = MappingProxyType({}),
    model: nn.Module | None = None,
    task: Task | None = None,
    say: Say,
) -> Prepared:
    """Build and check what ``settings`` name.

    Args:
        settings: Checked settings.
        space_settings: The search space.
        profile: The device profile.
        others: Profiles of other devices that objectives and limits name.
        model: The model where ``settings.model`` is ``None``.
        task: The task where ``settings.data`` is ``None``.
        say: Hears of oddities that stop nothing.

    Raises:
        AutopruneError: Something named does not exist, does not fit, or cannot meet the limits.
    """
    task = task or task_of(settings)
    metric = _metric(settings, task)
    if settings.cache is not None:
        needs_samples(task, "a cache")
    network = verified(trace(model or _model(settings, say), task.example_inputs()))
    if network.unsupported:
        listed = ", ".join(f"{name} ({n}x)" for name, n in sorted(network.unsupported.items()))
        say(f"operators without a rule froze the channels they met: {listed}")
    space = build_space(network.groups, network.blocks, space_settings, alignment=profile.alignment)
    if (
        space.members
        and space_settings.isomorphic == "auto"
        and ties_isomorphic(network.groups, space_settings, alignment=profile.alignment)
    ):
        say(
            f"{len(space.groups)} groups share {len(space.dimensions)} ratios by their structure; "
            "'isomorphic: false' in the search space keeps them apart"
        )
    if not space.distributions():
        reasons = "; ".join(sorted(set(network.frozen.values()))[:3])
        raise PruningError(
            "nothing of this network can be removed within the search space "
            f"({reasons or 'no group'}); `autoprune inspect` lists groups and what is frozen"
        )
    predictor = predictor_for(network.ops, profile)
    latency = space_latency(space, predictor.predict)
    measures = Measures(space, network.ops, profile, latency, others, say)
    most = {
        "params": settings.max_params,
        "macs": settings.max_macs,
        "memory": settings.max_memory_mb,
    }
    problem = Problem(
        space,
        latency,
        settings.budget_ms,
        ops=space_ops(space, network.ops),
        loss_offset=DIVERGENCE_OFFSET if metric == "kl" else 0.0,
        guess_loss=_guess_loss(task, network.model),
        costs=measures.objectives(settings.objective),
        limits=measures.limits(most, settings.max_latency_ms),
        min_accuracy=settings.min_accuracy,
    )
    check(problem)
    for note in predictor.notes:
        say(note)
    if settings.budget_ms is not None and problem.dense_ms <= settings.budget_ms:
        say(
            f"the unpruned network already meets the budget of {settings.budget_ms:g} ms "
            f"({problem.dense_ms:.3g} ms predicted); the search goes on for faster networks"
        )
    batches = task.calibration(settings.calibration_samples)
    calibrated = Calibrated.of(network, batches) if _reads_moments(settings) else None
    ranking = unit_scores(settings.criterion or "l2", settings, network, batches, calibrated, say)
    damage = None
    if settings.damage is not None:
        known = ranking
        if settings.damage != settings.criterion:
            known = unit_scores(settings.damage, settings, network, batches, calibrated, say)
        obs = settings.damage == "obs"
        # Structured OBS has added up already what goes together.
        damage = Damage.of_scores(space, known, cumulative=obs)
        if obs:
            damage = measured_damage(
                damage, network, space, ranking, batches, settings.realise, say=say
            )
    return Prepared(
        task=task,
        network=network,
        predictor=predictor,
        problem=dataclasses.replace(problem, scores=space_scores(space, ranking), damage=damage),
        calibrated=calibrated,
        numerics=numerics_for(settings.precision, network.model, network.inputs),
        metric=metric,
    )


def measured_damage(
    damage: Damage,
    network: Network,
    space: SearchSpace,
    ranking: Mapping[str, Float[np.ndarray, " _"]],
    batches: Batches,
    realise: str,
    *,
    say: Say = lambda sentence: None,
) -> Damage:
    """Return damage that costs what it does to the answers, group by group and block by block.

    Args:
        damage: Its curves are within a group right.
        network: The network.
        space: The search space.
        ranking: Importance of every unit of every group.
        batches: Calibration data.
        realise: How candidates are repaired.
        say: Hears how long it takes, where that is long.
    """
    planner, candidates = Planner(network, space, ranking), probes(space)
    plans = [planner(candidate) for candidate in candidates]
    started = time.monotonic()

    def heard(done: int) -> None:
        minutes = (time.monotonic() - started) / done * len(plans) / 60
        if done == _TIMED and minutes > 1:
            say(
                f"measuring once what each of {len(plans)} groups and blocks is worth, about "
                f"{minutes:.0f} min"
            )

    distances = answer_distances(network, batches, plans, realise=realise, listener=heard)
    return damage.measured(space, candidates, distances)


def _metric(settings: RunSettings, task: Task) -> Metric:
    """Return what is minimised: unless it was said, how well classes are told apart.

    Raises:
        TaskError: The metric needs a task that scores sample by sample.
    """
    if settings.metric == "auto":
        return "calibrated" if isinstance(task, ClassificationTask) else "loss"
    if settings.metric != "loss":
        needs_samples(task, f"the metric {settings.metric!r}")
    return settings.metric


def _guess_loss(task: Task, model: nn.Module) -> float | None:
    """Return the loss in nats of holding all classes for equally likely, where they are counted."""
    if not isinstance(task, SampledTask):
        return None

    def classes(outputs: object, targets: Tensor) -> int:
        task.sample_scores(outputs, targets)
        return task.log_probabilities(outputs).shape[-1]

    return math.log(next(iter(run_batches(model, task.batches("search", 0, 1), classes))))


def _reads_moments(settings: RunSettings) -> bool:
    """Whether anything that was asked for reads what calibration images tell about the network."""
    factories = [CRITERIA[settings.criterion or "l2"], REALISERS[settings.realise]]
    if settings.damage is not None:
        factories.append(CRITERIA[settings.damage])
    return any("calibrated" in inspect.signature(factory).parameters for factory in factories)


def unit_scores(
    name: str,
    settings: RunSettings,
    network: Network,
    batches: Batches,
    calibrated: Calibrated | None,
    say: Say,
) -> dict[str, Float[np.ndarray, " _"]]:
    """Return the importance of every unit of every group, and say where it is another's.

    Args:
        name: Of the criterion.
        settings: Of the search.
        network: The network; each of its groups is scored.
        batches: Calibration data.
        calibrated: What they told about the network, where that is known already.
        say: Hears where a criterion fell back to another.
    """
    criterion = build_criterion(name, seed=settings.seed, calibrated=calibrated)
    scores = criterion.score(network, batches)
    for reason in sorted(set(criterion.notes.values())):
        groups = [group for group, why in criterion.notes.items() if why == reason]
        listed = ", ".join(groups[:3]) + (", ..." if len(groups) > 3 else "")
        say(f"criterion {name!r}, {len(groups)} of {len(scores)} groups ({listed}): {reason}")
    return scores


def task_of(settings: RunSettings) -> Task:
    """Return the task that settings name.

    Raises:
        TaskError: They name none, or it cannot be loaded.
    """
    if settings.data is None:
        raise TaskError("this run was given its task as an object; pass it as task= again")
    return load_task(settings.data, batch=settings.batch, search_samples=settings.search_samples)


def _model(settings: RunSettings, say: Say) -> nn.Module:
    if settings.model is None:
        raise ModelError("this run was given its model as an object; pass it as model= again")
    source = ModelSource.parse(settings.model, weights=settings.weights)
    model, notes = source.build_with_notes(seed=settings.seed)
    for note in notes:
        say(note)
    return model
