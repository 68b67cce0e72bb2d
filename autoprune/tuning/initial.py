"""Other weights to begin with than the repaired ones: the contrast settings of the surveys."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.network.copies import deep_copy
from autoprune.network.network import Network
from autoprune.network.source import load_weights
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon


def rewound(network: Network, plan: PruningPlan, weights: Path) -> nn.Module:
    """Return a pruned network with the unpruned one's weights of an earlier time [Frankle2020].

    Args:
        network: The unpruned network.
        plan: What stays.
        weights: File with the earlier weights of the whole network.

    Raises:
        ModelError: The file cannot be read or does not fit.

    References:
        [Frankle2020] J. Frankle, G. K. Dziugaite, D. M. Roy, M. Carbin. Linear Mode Connectivity
        and the Lottery Ticket Hypothesis. ICML 2020.
    """
    earlier = deep_copy(network.model)
    load_weights(earlier, weights)
    tensors = dict([*earlier.named_parameters(), *earlier.named_buffers()])
    return Surgeon(network).cut(plan, replaced=tensors)


def from_scratch(model: nn.Module, *, seed: int) -> nn.Module:
    """Return a copy of a network with new random weights, as its modules draw them.

    Args:
        model: A pruned network; not changed.
        seed: Determines the weights; the global random state stays as it is.

    Raises:
        ModelError: A parameter belongs to a module that does not say how it begins.
    """
    fresh = deep_copy(model)
    foreign = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None)
            reset = reset or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            else:
                own = dict(module.named_parameters(recurse=False))
                foreign += [f"{name}.{key}".lstrip(".") for key in own]
    if foreign:
        raise ModelError(
            f"nothing says how {', '.join(foreign[:5])} of {type(model).__name__} begin; save an "
            "untrained network and take --init rewind:FILE"
        )
    return fresh
