"""Learning from the unpruned network's features, at the channels that were kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.network.copies import deep_copy
from autoprune.network.inputs import call_model
from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.recipe import Recipe
from autoprune.tasks.base import evaluation_mode


@dataclasses.dataclass(frozen=True)
class Feature:
    """A module whose output is compared.

    Attributes:
        module: Its path, the same in both networks.
        dim: Dimension of its output that was cut.
        kept: Positions of that dimension that stay; ``None`` where all do.
    """

    module: str
    dim: int = 0
    kept: tuple[int, ...] | None = None

    def of_teacher(self, output: Tensor) -> Tensor:
        """Return what of the unpruned network's output the pruned network has too."""
        if self.kept is None:
            return output
        return output.index_select(self.dim, torch.tensor(self.kept, device=output.device))


def block_features(network: Network, plan: PruningPlan, pruned: nn.Module) -> tuple[Feature, ...]:
    """Return the outputs of the residual blocks that stay, as far as their channels are known.

    What leaves a block are the units of the stream that it adds to. A block is left out where both
    networks disagree about its output by more than one dimension, or more than one cut fits it.

    Args:
        network: The unpruned network.
        plan: How it was cut.
        pruned: The pruned network; not changed.
    """
    cuts = {}
    for cut in Recipe.of(network, plan).cuts:
        for path, dim in cut.places:
            if dim == 0:
                cuts[path] = (cut.size, cut.kept)
    owners: dict[str, set[str]] = {}
    for group in network.groups:
        for member in group.members:
            if member.dim == 0:
                owners.setdefault(member.path, set()).add(group.name)
    blocks = [block for block in network.blocks if block.name not in plan.dropped]
    names = [block.name for block in blocks]
    wide, narrow = (_shapes(each, names, network) for each in (network.model, pruned))
    found = []
    for block in blocks:
        if block.name not in wide or block.name not in narrow:
            continue
        fitting = {
            cuts[path]
            for path, groups in owners.items()
            if path.startswith(f"{block.name}.") and path in cuts and not groups & set(block.groups)
        }
        feature = _feature(block.name, wide[block.name], narrow[block.name], fitting)
        if feature is not None:
            found.append(feature)
    return tuple(found)


def _feature(
    name: str,
    wide: torch.Size,
    narrow: torch.Size,
    cuts: set[tuple[int, tuple[int, ...]]],
) -> Feature | None:
    """Return the feature of a module whose outputs have these shapes, ``None`` if it is unclear."""
    if wide == narrow:
        return Feature(name)
    if len(wide) != len(narrow):
        return None
    dims = [dim for dim, sizes in enumerate(zip(wide, narrow, strict=True)) if sizes[0] != sizes[1]]
    kept = [kept for size, kept in cuts if (size, len(kept)) == (wide[dims[0]], narrow[dims[0]])]
    return Feature(name, dims[0], kept[0]) if len(dims) == 1 and len(kept) == 1 else None


def _shapes(model: nn.Module, names: list[str], network: Network) -> dict[str, torch.Size]:
    """Return the shape of what each module returns for the example inputs, where it is a tensor."""
    twin = deep_copy(model)
    with evaluation_mode(twin), torch.no_grad(), noted(twin, names) as outputs:
        call_model(twin, network.inputs)
        return {name: output.shape for name, output in outputs.items()}


@contextmanager
def noted(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that holds what named modules returned in the latest pass."""
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(note(name))
            stack.callback(handle.remove)
        yield outputs


def feature_loss(
    features: tuple[Feature, ...], student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> Float[Tensor, ""]:
    """Return the mean over features of the squared difference, relative to the teacher's variance.

    Args:
        features: What is compared.
        student: Outputs of the pruned network by module.
        teacher: Outputs of the unpruned network by module.
    """
    losses = []
    for feature in features:
        target = feature.of_teacher(teacher[feature.module]).float()
        error = (student[feature.module].float() - target).square().mean()
        losses.append(error / target.var().clamp(min=1e-6))
    return torch.stack(losses).mean()
