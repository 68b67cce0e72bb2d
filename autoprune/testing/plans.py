"""Plans that any traced network allows, for checks and benchmarks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from autoprune.network.groups import ChannelGroup
from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan


def half_plan(network: Network) -> PruningPlan:
    """Return the plan that keeps half of every group, evenly spread, and every block."""
    return PruningPlan({group.name: half_of(group) for group in network.groups})


def half_of(group: ChannelGroup) -> tuple[int, ...]:
    """Return half of a group's units, evenly spread; more where the group does not allow so few."""
    width = next(n for n in _widths(group) if 2 * n >= group.size)
    return tuple(int(unit) for unit in np.arange(width) * group.size // width)


def random_plans(network: Network, count: int, *, seed: int = 0) -> list[PruningPlan]:
    """Return plans of any allowed number of units per group, and three in ten blocks dropped.

    Args:
        network: The traced network.
        count: How many plans.
        seed: Decides them.
    """
    generator = np.random.default_rng(seed)
    plans = []
    for _ in range(count):
        kept = {}
        for group in network.groups:
            units = generator.choice(group.size, generator.choice(_widths(group)), replace=False)
            kept[group.name] = tuple(sorted(map(int, units)))
        dropped = tuple(block.name for block in network.blocks if generator.random() < 0.3)
        plans.append(PruningPlan(kept, dropped))
    return plans


def _widths(group: ChannelGroup) -> Int[np.ndarray, " widths"]:
    """Return the allowed numbers of units, smallest first."""
    return np.array([n for n in range(1, group.size + 1) if group.allows(n)], np.int64)
