"""Cuts every group for real before it is offered: what does not hold is frozen with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.network.call import tensors_in
from autoprune.network.groups import Block, ChannelGroup
from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon

#: Largest relative difference between a pruned network and the same one with zeroed units.
TOLERANCE = 1e-4

Item = TypeVar("Item", ChannelGroup, Block)


def verified(network: Network, *, seed: int = 0) -> Network:
    """Return the network with every group and block that fails a real cut frozen.

    All groups are cut at once, and only where that fails are the culprits searched for, by halving.
    Where no normalisation mixes channels, the pruned network must equal the one with the same units
    zeroed (relative error below :data:`TOLERANCE`); where one does, and for blocks, it must run and
    give finite values of the same shape. The comparison runs on a copy with lively parameters, so
    that a small layer scale or an untrained weight cannot hide a fault.

    Args:
        network: A traced network.
        seed: Decides which units are cut and the lively parameters.
    """
    generator = np.random.default_rng(seed)
    kept = {group.name: _half(group, generator) for group in network.groups}
    trial = _Trial(network, seed)
    plain = [group for group in network.groups if not group.mixed]
    mixing = [group for group in network.groups if group.mixed]

    def equal(groups: Sequence[ChannelGroup]) -> str:
        return trial.equals_masked(PruningPlan({g.name: kept[g.name] for g in groups}))

    good, bad = _sieve((), plain, equal)

    def finite(groups: Sequence[ChannelGroup]) -> str:
        return trial.runs(PruningPlan({g.name: kept[g.name] for g in groups}))

    good, worse = _sieve(good, mixing, finite)

    def droppable(blocks: Sequence[Block]) -> str:
        return trial.runs(PruningPlan({}, tuple(block.name for block in blocks)))

    _, stuck = _sieve((), network.blocks, droppable)
    return _without(network, bad | worse, stuck)


def _half(group: ChannelGroup, generator: np.random.Generator) -> tuple[int, ...]:
    kept = generator.choice(group.size, max(group.size // 2, 1), replace=False)
    return tuple(int(unit) for unit in np.sort(kept))


def _sieve(
    accepted: Sequence[Item], items: Sequence[Item], fault: Callable[[Sequence[Item]], str]
) -> tuple[list[Item], dict[str, str]]:
    """Return ``accepted`` with every item that works together with it, and why the others do not.

    Args:
        accepted: Items known to work together.
        items: Items to add.
        fault: Says what is wrong with a set of items, ``""`` when nothing is.
    """
    if not items:
        return list(accepted), {}
    together = list(accepted) + list(items)
    reason = fault(together)
    if not reason:
        return together, {}
    if len(items) == 1:
        return list(accepted), {items[0].name: reason}
    middle = len(items) // 2
    accepted, first = _sieve(accepted, items[:middle], fault)
    accepted, second = _sieve(accepted, items[middle:], fault)
    return accepted, first | second


class _Trial:
    """Runs cut copies of one network and judges them."""

    def __init__(self, network: Network, seed: int) -> None:
        lively = _lively(network, seed)
        self._inputs = network.inputs
        self._surgeon = Surgeon(dataclasses.replace(network, model=lively))
        self._dense = self._run(lively)

    def equals_masked(self, plan: PruningPlan) -> str:
        """Return why the pruned network differs from the masked one, ``""`` if it does not."""
        fault, outputs = self._try(plan)
        if fault:
            return fault
        expected = self._run(self._surgeon.mask(plan))
        for got, want in zip(outputs, expected, strict=True):
            scale = float(want.abs().max().clamp_min(1e-12)) if want.numel() else 1.0
            error = float((got - want).abs().max()) / scale if want.numel() else 0.0
            if error > TOLERANCE:
                return f"cutting differs from zeroing by {error:.1e}"
        return ""

    def runs(self, plan: PruningPlan) -> str:
        """Return why the pruned network does not run, ``""`` if it does."""
        return self._try(plan)[0]

    def _try(self, plan: PruningPlan) -> tuple[str, list[Tensor]]:
        try:
            outputs = self._run(self._surgeon.cut(plan))
        except Exception as error:  # noqa: BLE001 - any model can raise anything when cut
            first_line = str(error).splitlines()[0] if str(error) else ""
            return f"does not run when cut: {type(error).__name__}: {first_line}", []
        if [t.shape for t in outputs] != [t.shape for t in self._dense]:
            return "the output's shape changes when cut", outputs
        if not all(bool(torch.isfinite(t).all()) for t in outputs):
            return "the output is not finite when cut", outputs
        return "", outputs

    def _run(self, model: nn.Module) -> list[Tensor]:
        inputs = torch.utils._pytree.tree_map_only(Tensor, torch.clone, self._inputs)
        with torch.no_grad():
            output = model.eval()(*inputs)
        return [t for t in tensors_in(output) if t.is_floating_point()]


def _lively(network: Network, seed: int) -> nn.Module:
    """Return a copy through which every channel visibly reaches the output."""
    model = Surgeon(network).cut(PruningPlan({}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() == max(parameter.shape, default=1):
                noise = torch.rand(parameter.shape, generator=generator)
                value = 0.2 * noise - 0.1 if name.endswith("bias") else 0.5 + noise
                parameter.copy_(value)
        _match_statistics(model, network.inputs)
    return model.eval()


def _match_statistics(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Give every BatchNorm the statistics of its own input, so that activations keep scale."""

    def measure(module: Any, args: tuple[Any, ...]) -> None:
        dims = [dim for dim in range(args[0].ndim) if dim != 1]
        module.running_mean.copy_(args[0].mean(dims))
        module.running_var.copy_(args[0].var(dims, correction=0) + 1e-3)

    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    handles = [module.register_forward_pre_hook(measure) for module in norms]
    model.eval()(*torch.utils._pytree.tree_map_only(Tensor, torch.clone, inputs))
    for handle in handles:
        handle.remove()


def _without(network: Network, groups: dict[str, str], blocks: dict[str, str]) -> Network:
    """Return the network with some groups and blocks frozen."""
    group_numbers = {i for i, group in enumerate(network.groups) if group.name in groups}
    block_numbers = {i for i, block in enumerate(network.blocks) if block.name in blocks}
    return dataclasses.replace(
        network,
        groups=tuple(group for group in network.groups if group.name not in groups),
        blocks=tuple(
            dataclasses.replace(
                block, groups=tuple(name for name in block.groups if name not in groups)
            )
            for block in network.blocks
            if block.name not in blocks
        ),
        ops=network.ops.without(group_numbers, block_numbers),
        frozen=network.frozen | groups | {f"block {name}": why for name, why in blocks.items()},
    )
