"""The first-order change of the loss when a unit is switched off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autoprune.errors import PruningError
from autoprune.network.groups import ParamSlice
from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters, parameter_sites, unit_sums
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion

Loss = Callable[[Any, Tensor], Tensor]


def cross_entropy(output: Any, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits.

    Raises:
        PruningError: The model's output is not a tensor of logits.
    """
    if not isinstance(output, Tensor):
        raise PruningError(
            f"criterion 'taylor' expected the model to return a tensor of logits, but got a "
            f"{type(output).__name__}; pass loss=..., a function of (output, targets)"
        )
    return F.cross_entropy(output, targets)


@CRITERIA.register("taylor")
class Taylor(Criterion):
    r"""Scores a unit by its squared gate gradient, Taylor-FO [Molchanov2019taylor].

    A gate :math:`m_c = 1` multiplies unit c wherever a weight reads it: removing the unit is
    closing the gate at all readers at once. Its gradient on one batch follows from the weights,

    .. math:: g_c = \partial L / \partial m_c = \sum_{readers} \sum_{w \in column(c)} w \, \partial
        L / \partial w

    summed over readers *before* squaring, as they go together. Behind BatchNorm and ReLU this
    equals the paper's gate on the BatchNorm output, :math:`\gamma \, \partial L / \partial \gamma +
    \beta \, \partial L / \partial \beta`; on a residual path it equals the sum of those gates. The
    score is the mean of :math:`g_c^2` over small batches, each weighted by its images. Scores are
    squared loss changes and compare across groups; nothing is normalised.

    Readers are the input columns of :class:`torch.nn.Linear`, convolutions and multi-head
    attention. **Where another kind of module holds a weight of the group, or nothing of these reads
    it, the gate multiplies every parameter of the unit instead**, what writes it included; such
    groups are listed in :attr:`notes`.

    References:
        [Molchanov2019taylor] P. Molchanov et al. Importance Estimation for Neural Network Pruning.
        CVPR 2019.
    """

    name = "taylor"
    needs = "labels"
    family = "optimisation tools"

    def __init__(self, *, images: int = 32, loss: Loss = cross_entropy) -> None:
        """Store parameters.

        Args:
            images: Images per gradient; larger batches are split, so that how the data arrive
                matters little. Over many images gradients cancel in a trained network.
            loss: Mean loss of a batch, from the model's output and the targets.
        """
        self.images = images
        self.loss = loss

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        # A copy takes the gradients, so that nothing the user holds can change.
        model = copy.deepcopy(network.model).eval().requires_grad_(False)
        named = named_parameters(model)
        sites = {group.name: parameter_sites(group, named) for group in network.groups}
        gates = {name: _readers(model, members) for name, members in sites.items()}
        self.notes = {
            name: "not all readers are known; the gate is on every parameter of the unit"
            for name, readers in gates.items()
            if not readers
        }
        gates = {name: readers or sites[name] for name, readers in gates.items()}
        cut = {member.path: tensor for gate in gates.values() for member, tensor in gate}
        for tensor in cut.values():
            tensor.requires_grad_(True)
        total = {group.name: np.zeros(group.size) for group in network.groups}
        seen = 0
        pieces = (
            piece
            for inputs, targets in batches
            for piece in zip(_split(inputs, self.images), _split(targets, self.images), strict=True)
        )
        for inputs, targets in pieces if cut else ():
            effect = self._effect(model, cut, inputs, targets)
            for name, members in gates.items():
                gate = np.sum([unit_sums(effect[site.path], site) for site, _ in members], axis=0)
                total[name] += len(inputs) * gate**2
            seen += len(inputs)
        return {name: scores / seen for name, scores in total.items()}

    def _effect(
        self, model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return w * dL/dw of every parameter for one batch."""
        device = next(iter(parameters.values())).device
        with torch.enable_grad():
            loss = self.loss(model(inputs.to(device)), targets.to(device))
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), allow_unused=True, materialize_grads=True
            )
        return {
            name: tensor.detach() * gradient
            for (name, tensor), gradient in zip(parameters.items(), gradients, strict=True)
        }


def _split(batch: Tensor, images: int) -> list[Tensor]:
    """Return ``batch`` in pieces of at most ``images``."""
    return [batch[start : start + images] for start in range(0, len(batch), images)]


def _readers(
    model: nn.Module, sites: Sequence[tuple[ParamSlice, Tensor]]
) -> list[tuple[ParamSlice, Tensor]]:
    """Return the sites that read the units; none where a weight's role is not known."""
    readers = []
    for member, tensor in sites:
        if tensor.ndim < 2:  # biases and affine parameters read nothing
            continue
        owner = model.get_submodule(member.path.rpartition(".")[0])
        if not isinstance(owner, (nn.Linear, _ConvNd, nn.MultiheadAttention)):
            return []
        transposed = isinstance(owner, _ConvNd) and owner.transposed
        if member.dim == (0 if transposed else 1):
            readers.append((member, tensor))
    return readers
