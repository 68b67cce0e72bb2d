"""Which units a layer without any of them asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.network.network import Network
from autoprune.pruning.activations import (
    Gatherer,
    by_path,
    columns,
    gather,
    known_readers,
)
from autoprune.pruning.aggregate import named_parameters, widened
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import (
    GradientCriterion,
    Loss,
    cross_entropy,
    gradient_copy,
    mean_gradients,
)
from autoprune.pruning.magnitude import or_magnitude
from autoprune.pruning.reads import Convolution, Product, Reader


@CRITERIA.register("dcp")
class DCP(GradientCriterion):
    r"""Scores a unit by how steeply the loss falls when its readers open up [Zhuang2018dcp].

    .. math:: \sum_{readers} \Bigl\lVert \frac{\partial (L_{rec} + \lambda L_{disc})}{\partial
        W_{:,c}} \Bigr\rVert_F^2

    at the point where the group's columns of all its readers are zero, as the paper's selection
    starts. :math:`L_{rec}` is half the mean squared error of a reader's output against what the
    dense network's units give there; :math:`L_{disc}` is the loss of the network. The paper adds
    classifiers in the middle of the network and picks units one by one, tuning in between; here
    there is no training, so the network's own loss discriminates, and the first gradient ranks all
    units. Takes one forward and backward pass per group.

    **Groups whose readers are not all known, or never ran, are scored by the L2 magnitude of their
    weights** and listed in :attr:`notes`.

    References:
        [Zhuang2018dcp] Z. Zhuang et al. Discrimination-aware Channel Pruning for Deep Neural
        Networks. NeurIPS 2018.
    """

    name = "dcp"
    family = "activation-based"

    def __init__(
        self,
        *,
        discrimination: float = 1.0,
        samples: int = 128,
        images: int = 32,
        loss: Loss = cross_entropy,
    ) -> None:
        """Store parameters.

        Args:
            discrimination: The factor lambda.
            samples: Images that are used, the first; every group takes a pass over them.
            images: Images of one backward pass.
            loss: Mean loss of a batch, from the model's output and the targets.
        """
        super().__init__(images=images, loss=loss)
        self.discrimination = discrimination
        self.samples = samples

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        batches = _first(batches, self.samples)
        known = known_readers(network)
        paths = by_path(known)
        named = named_parameters(network.model)
        gathered = gather(
            network, batches, known, lambda path: _Error(named[path].detach(), paths[path])
        )
        model = gradient_copy(network)
        found: dict[str, Float[np.ndarray, " units"] | str] = {}
        for name, everyone in known.items():
            ran = [reader for reader in everyone if reader.path in gathered]
            weights = {reader.path: named_parameters(model)[reader.path] for reader in ran}
            if not ran:
                found[name] = "its readers never ran" if everyone else "not all readers are known"
                continue
            dense = {path: weight.clone() for path, weight in weights.items()}
            for reader in ran:
                weights[reader.path].index_fill_(reader.dim, _places(reader, named), 0)
            slopes = mean_gradients(model, weights, batches, loss=self.loss, images=self.images)
            for path, weight in weights.items():
                weight.copy_(dense[path])
            found[name] = np.sum(
                [
                    _squares(reader, gathered[reader.path].slope(name), slopes, self.discrimination)
                    for reader in ran
                ],
                axis=0,
            )
        scores, self.notes = or_magnitude(network, found)
        return scores


def _squares(
    reader: Reader, error: Tensor, slopes: dict[str, Tensor], discrimination: float
) -> Float[np.ndarray, " units"]:
    """Return the squared norm of the gradient by all weights that read each unit."""
    places, rows = columns(reader, error.double() + discrimination * slopes[reader.path].double())
    squares: Float[np.ndarray, " units"] = rows.square().sum(1).cpu().numpy()[places].sum(1)
    return squares


def _first(batches: Batches, samples: int) -> Batches:
    """Return the first ``samples`` images of the data."""
    starts = np.cumsum([0, *(len(inputs) for inputs, _ in batches)])
    left = [samples - int(start) for start in starts]
    return [
        (inputs[:count], targets[:count])
        for (inputs, targets), count in zip(batches, left, strict=False)
        if count > 0
    ]


def _places(reader: Reader, named: dict[str, Tensor]) -> Tensor:
    """Return all positions of a group's units in the weight's input dimension."""
    return torch.from_numpy(reader.indices).flatten().to(named[reader.path].device)


class _Error(Gatherer):
    """Adds up the gradient of a reader's squared error by its weight, from no units at all."""

    def __init__(self, weight: Tensor, groups: Sequence[tuple[str, Reader]]) -> None:
        weight = widened(weight)
        self.count = 0
        self.of_units: dict[str, Tensor] = {}
        for name, reader in groups:
            places = torch.from_numpy(reader.indices).flatten().to(weight.device)
            chosen = weight.index_select(reader.dim, places)
            empty = torch.zeros_like(weight)
            self.of_units[name] = empty.index_copy(reader.dim, places, chosen)
        self.total = {name: torch.zeros_like(weight) for name in self.of_units}

    def add(self, inputs: Tensor, how: Product | Convolution, images: int) -> None:
        """Take in one input."""
        inputs = widened(inputs)
        for name, weight in self.of_units.items():
            entries, slope = _output_times_input(inputs, weight, how)
            self.total[name] -= slope
        self.count += entries

    def slope(self, name: str) -> Tensor:
        """Return the gradient of half the mean squared error for the units of one group."""
        return self.total[name] / self.count


def _output_times_input(
    inputs: Tensor, weight: Tensor, how: Product | Convolution
) -> tuple[int, Tensor]:
    """Return the number of outputs, and the sum of each times what its weights multiply."""
    if isinstance(how, Product):
        matrix = weight.movedim(how.dim, 0)
        outputs = inputs @ matrix.flatten(1)
        slope = (inputs.T @ outputs).reshape(matrix.shape)
        return outputs.numel(), slope.movedim(0, how.dim)
    none = [0] * len(how.stride)
    options = (how.stride, how.padding, how.dilation, how.transposed, none, how.groups)
    outputs = torch.ops.aten.convolution(inputs, weight, None, *options)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        outputs, inputs, weight, None, *options, [False, True, False]
    )
    return outputs.numel(), gradient
