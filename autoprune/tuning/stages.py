"""Iterative pruning: a network is cut in several steps and trained between them [Han2015]."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from autoprune.errors import SettingsError
from autoprune.network.groups import ChannelGroup
from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon

#: What ``--schedule`` takes, as messages say it.
SCHEDULES = "one-shot or iterative:K with K at least 2"


def stages_of(schedule: str) -> int:
    """Return in how many steps a schedule prunes.

    >>> stages_of("one-shot"), stages_of("iterative:4")
    (1, 4)

    Raises:
        SettingsError: There is no such schedule.
    """
    found = re.fullmatch(r"one-shot|iterative:([1-9][0-9]{0,3})", schedule)
    stages = int(found.group(1) or 1) if found else 0
    if not stages or (stages == 1 and schedule != "one-shot"):
        raise SettingsError(f"schedule: expected {SCHEDULES}, got {schedule!r}")
    return stages


def stage_steps(steps: int, stages: int) -> tuple[int, ...]:
    """Return the training steps of each stage, as equal as can be; the last has the rest.

    >>> stage_steps(32, 3)
    (10, 10, 12)

    Raises:
        SettingsError: There are fewer steps than stages.
    """
    if steps < stages:
        raise SettingsError(
            f"schedule: {stages} prunings need as many training steps, got {steps}; take more "
            "steps, or one-shot"
        )
    each = steps // stages
    return (*([each] * (stages - 1)), steps - each * (stages - 1))


def stage_width(group: ChannelGroup, width: int, share: float) -> int:
    """Return how many units stay on the way from a whole group to ``width``.

    >>> group = ChannelGroup("conv", 16, ())
    >>> [stage_width(group, 6, share) for share in (0.25, 0.5, 1.0)]
    [14, 11, 6]

    Args:
        group: The group.
        width: Units that stay at the end.
        share: Of the way, in [0, 1].

    Returns:
        The smallest allowed number that is not below that share of the way.
    """
    least = max(width, math.ceil(group.size - share * (group.size - width) - 1e-9))
    return next(n for n in range(least, group.size + 1) if group.allows(n))


def stage_plan(
    network: Network,
    final: PruningPlan,
    *,
    order: Mapping[str, Int[np.ndarray, " _"]],
    before: PruningPlan,
    share: float,
) -> PruningPlan:
    """Return what stays after one of several prunings.

    Blocks cannot go in part, and their loss takes longest to make up for, so they go at once.

    Args:
        network: The unpruned network.
        final: How many units of each group stay at the end, and which blocks go.
        order: The units of every group from the most to the least important, as they are now.
        before: What stayed of the pruning before; nothing else comes back.
        share: Of the way to ``final``, in (0, 1].

    References:
        [Han2015] S. Han, J. Pool, J. Tran, W. J. Dally. Learning both Weights and Connections for
        Efficient Neural Networks. NeurIPS 2015.
    """
    kept = {}
    for group in network.groups:
        if group.name not in final.kept:
            continue
        width = stage_width(group, len(final.kept[group.name]), share)
        there = set(before.kept.get(group.name, range(group.size)))
        staying = [unit for unit in order[group.name].tolist() if unit in there][:width]
        if len(staying) < group.size:
            kept[group.name] = tuple(sorted(staying))
    return Surgeon(network).complete(PruningPlan(kept, final.dropped))
