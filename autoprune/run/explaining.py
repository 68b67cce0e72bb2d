"""What a finished search can say beyond its table: layers, damage, importance of parameters."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from autoprune.execution.driver import Record
from autoprune.latency.memory import MemoryModel
from autoprune.report.data import (
    ChosenNetwork,
    DamageCurve,
    GroupWidth,
    Importance,
    KernelTime,
    NetworkLayers,
)
from autoprune.run.preparation import Prepared
from autoprune.strategy.problem import LEAST_LOSS, Problem
from autoprune.strategy.space import Candidate

#: Points of a damage curve that are kept.
_CURVE_POINTS = 33
#: Fewest trials that importances are computed from, and trees of the forest they are read from.
_FEWEST, _TREES = 32, 16
#: Twice the trials take less than so many times as long.
_GROWTH = 3.0
_MB = 1e6


def network_layers(
    records: Sequence[Record], prepared: Prepared, *, bytes_per_element: int
) -> tuple[NetworkLayers, ...]:
    """Return what networks are made of, in the same order.

    Args:
        records: Their trials.
        prepared: The run.
        bytes_per_element: Of weights and activations, as deployed.
    """
    if not records:
        return ()
    space, network = prepared.problem.space, prepared.network
    candidates = [record.evaluation.candidate for record in records]
    widths, keep = space.network_widths(space.widths(candidates)), space.keep(candidates)
    memory = MemoryModel(network.ops, bytes_per_element=bytes_per_element)
    memory_mb = memory.footprint(widths, keep).total / _MB
    found = []
    for row, record in enumerate(records):
        removed = tuple(
            block for block, stays in zip(space.blocks, keep[row], strict=True) if not stays
        )
        inside = (block.groups for block in network.blocks if block.name in removed)
        gone = {name for groups in inside for name in groups}
        kernels = prepared.predictor.breakdown(widths[row], keep[row])
        found.append(
            NetworkLayers(
                trial=record.number,
                kept=tuple(
                    0 if group.name in gone else int(kept)
                    for group, kept in zip(network.groups, widths[row], strict=True)
                ),
                kernel_ms=tuple(ms for _, _, ms in kernels),
                removed_blocks=removed,
                memory_mb=float(memory_mb[row]),
            )
        )
    return tuple(found)


def dense_memory_mb(prepared: Prepared, *, bytes_per_element: int) -> float:
    """Return the megabytes of the unpruned network's weights and largest activations."""
    memory = MemoryModel(prepared.network.ops, bytes_per_element=bytes_per_element)
    return float(memory.footprint().total[0]) / _MB


def chosen_network(layers: NetworkLayers, prepared: Prepared) -> ChosenNetwork:
    """Return a network with the names and dense values of everything it is made of."""
    return ChosenNetwork(
        trial=layers.trial,
        widths=tuple(
            GroupWidth(group.name, kept, group.size)
            for group, kept in zip(prepared.network.groups, layers.kept, strict=True)
        ),
        removed_blocks=layers.removed_blocks,
        kernels=_kernels(layers, prepared),
    )


def _kernels(layers: NetworkLayers, prepared: Prepared) -> tuple[KernelTime, ...]:
    """Return the latency of every kernel, in the unpruned network and in this one."""
    space = prepared.problem.space
    dense: Candidate = space.dense()
    widths = space.network_widths(space.widths([dense]))[0]
    unpruned = prepared.predictor.breakdown(widths, space.keep([dense])[0])
    return tuple(
        KernelTime(
            name=name.partition(" ")[0],
            kind=" ".join([kind, *name.split(" ")[1:]]),
            dense_ms=before,
            chosen_ms=after,
        )
        for (name, kind, before), after in zip(unpruned, layers.kernel_ms, strict=True)
    )


def damage_curves(problem: Problem) -> tuple[DamageCurve, ...]:
    """Return the expected damage of every group that is searched; empty where it is not known."""
    if problem.damage is None:
        return ()
    curves = []
    for dim, curve in zip(problem.space.dimensions, problem.damage.groups, strict=True):
        if dim.searched:
            widths = dim.widths[::-1]
            count = min(_CURVE_POINTS, len(widths))
            widths = widths[np.linspace(0, len(widths) - 1, count).round().astype(np.int64)]
            ratios, damage = 1.0 - widths / dim.size, curve[widths]
            curves.append(DamageCurve(dim.group, tuple(ratios.tolist()), tuple(damage.tolist())))
    return tuple(curves)


def importance(study: optuna.Study, *, seconds: float) -> Importance | None:
    """Return how much each parameter decided the logarithm of the loss [Hutter2014fanova].

    Computed from ever more trials, evenly spread over the study, as long as the time lasts: the
    method takes minutes for a thousand.

    Args:
        study: The study, its first value the loss.
        seconds: Time that it may take about.

    Returns:
        ``None`` where fewer than 32 trials are complete, all losses are the same, or there is
        nothing to choose.

    References:
        [Hutter2014fanova] Hutter, Hoos, Leyton-Brown. An Efficient Approach for Assessing
        Hyperparameter Importance. ICML 2014.
    """
    done = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.params and "duplicate_of" not in trial.user_attrs
    ]
    if len(done) < _FEWEST or len({trial.values[0] for trial in done}) == 1:
        return None
    count, found, left = _FEWEST, None, seconds
    for _ in range(len(done).bit_length()):
        started = time.perf_counter()
        some = [done[i] for i in np.linspace(0, len(done) - 1, count).round().astype(int)]
        found = Importance(_shares(some), len(some))
        spent = time.perf_counter() - started
        left -= spent
        if count == len(done) or _GROWTH * spent > left:
            break
        count = min(2 * count, len(done))
    return found


def _shares(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    part = optuna.create_study(directions=["minimize"] * len(trials[0].values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        part.add_trials(trials)
        shares = optuna.importance.get_param_importances(
            part,
            evaluator=FanovaImportanceEvaluator(n_trees=_TREES, seed=0),
            target=lambda trial: math.log(max(trial.values[0], LEAST_LOSS)),
        )
    return {name: float(share) for name, share in shares.items()}
