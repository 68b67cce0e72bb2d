"""How far the answers of a network move when a part of it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.network.call import tensors_in
from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.gram import pieces
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser

#: So many samples at most repair what is left, and as many others measure the distance.
SAMPLES = 32

#: Rows and unknowns of a least-squares problem at most, where the repair solves any; so few samples
#: tell nothing of larger ones.
ROWS, UNKNOWNS = 2048, 1152


@torch.no_grad()
def answer_distances(
    network: Network,
    batches: Batches,
    plans: Sequence[PruningPlan],
    *,
    realise: str,
    listener: Callable[[int], None] = lambda done: None,
) -> list[float]:
    r"""Return for each plan the distance between answers of what it leaves and of all.

    That is :math:`\sqrt{E \lVert z' - z \rVert^2 / E \lVert z - E z \rVert^2}` over the outputs
    z' of the network that a plan makes, and z of the one that the plan of nothing makes: 0 where
    nothing changes, about 1 where nothing of the answers is left. What a repair does without need,
    as new statistics of few samples, is in both. Repair and distance are those of different
    samples.

    Args:
        network: A traced network; its model is not changed.
        batches: Calibration data; targets are not read, samples beyond twice :data:`SAMPLES`
            neither.
        plans: What goes.
        realise: How what is left is repaired, a name in
            :data:`autoprune.pruning.realiser.REALISERS`.
        listener: Hears after each plan how many are done.
    """
    repairing, measuring = _halves(batches)
    realiser = build_realiser(realise, network, repairing, rows=ROWS, most_unknowns=UNKNOWNS)
    dense = _answers(realiser(PruningPlan({})), measuring)
    spread = _spread(dense)

    distances = []
    for plan in plans:
        answers = _answers(realiser(plan), measuring)
        moved = sum(_squares(a - b) for a, b in zip(answers, dense, strict=True))
        distances.append((moved / spread) ** 0.5 if spread else 0.0)
        listener(len(distances))
    return distances


def _halves(batches: Batches) -> tuple[Batches, Batches]:
    """Return two parts of the first samples; of a single one, that twice."""
    few: list[tuple[Tensor, Tensor]] = []
    left = 2 * SAMPLES
    for inputs, targets in batches:
        if left > 0:
            few += zip(inputs[:left].split(1), targets[:left].split(1), strict=True)
        left -= len(inputs)
    half = max(len(few) // 2, 1)
    return _joined(few[:half]), _joined(few[-half:])


def _joined(samples: Sequence[tuple[Tensor, Tensor]]) -> Batches:
    """Return samples in one batch for each of their shapes."""
    shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for inputs, targets in samples:
        shapes.setdefault(inputs.shape, []).append((inputs, targets))
    return [
        (torch.cat([x for x, _ in alike]), torch.cat([y for _, y in alike]))
        for alike in shapes.values()
    ]


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
