"""How far the answers of a network move when a block is dropped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.network.call import tensors_in
from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.gram import pieces
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.statistics import recalibrate_batchnorm
from autoprune.pruning.surgery import Surgeon

#: Samples that the distance is measured on at most.
SAMPLES = 64


@torch.no_grad()
def block_distances(network: Network, batches: Batches) -> dict[str, float]:
    r"""Return by name of each removable block the distance between answers without and with it.

    That is :math:`\sqrt{E \lVert z' - z \rVert^2 / E \lVert z - E z \rVert^2}` over the outputs
    z of the network and z' of the one whose block is the identity and whose BatchNorm statistics
    are repaired: 0 for a block that does nothing, about 1 where nothing of the answers is left.
    Two forward passes per block.

    Args:
        network: A traced network; its model is not changed.
        batches: Calibration data; targets are not read, samples beyond :data:`SAMPLES` neither.
    """
    few = list(_few(batches))
    dense = _answers(network.model, few)
    spread = _spread(dense)
    surgeon = Surgeon(network)
    distances = {}
    for block in network.blocks:
        model = surgeon.cut(PruningPlan({}, (block.name,)))
        recalibrate_batchnorm(model, few)
        moved = sum(_squares(a - b) for a, b in zip(_answers(model, few), dense, strict=True))
        distances[block.name] = (moved / spread) ** 0.5 if spread else 0.0
    return distances


def _few(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    left = SAMPLES
    for inputs, targets in batches:
        if left > 0:
            yield inputs[:left], targets[:left]
        left -= len(inputs)


def _answers(model: nn.Module, batches: Batches) -> list[Tensor]:
    """Return the floating-point outputs of every piece of the data, in eval mode."""
    found = [model.eval()(part) for part in pieces(model, batches)]
    return [each for output in found for each in tensors_in(output) if each.is_floating_point()]


def _spread(answers: list[Tensor]) -> float:
    """Return the squared distance of answers from the mean answer, those of one shape together."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for answer in answers:
        shapes.setdefault(answer.shape[1:], []).append(answer)
    return sum(_squares(a - torch.cat(alike).mean(0)) for alike in shapes.values() for a in alike)


def _squares(difference: Float[Tensor, "..."]) -> float:
    return float(difference.double().square().sum())
