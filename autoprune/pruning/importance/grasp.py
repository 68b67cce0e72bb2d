"""What a weight does for the flow of the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.network.inputs import evaluating
from autoprune.network.network import Network
from autoprune.network.outputs import logits_of
from autoprune.pruning.aggregate import (
    named_parameters,
    parameter_sites,
    unit_rows,
    weight_sites,
    widened,
)
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import (
    GradientCriterion,
    Loss,
    cross_entropy,
    effect_scores,
    gradient_copy,
    gradients,
    labelled,
    mean_gradients,
)


@CRITERIA.register("grasp")
class Grasp(GradientCriterion):
    r"""Scores a unit by :math:`\sum_w w \, (H g)_w` over its weights [Wang2020grasp].

    g is the gradient of the mean loss over all data by all weights, H its Hessian, and w runs over
    the weights that write and read the unit. Removing w changes :math:`\lVert g \rVert^2`, how fast
    the loss can fall, by :math:`-2 w (Hg)_w` to first order: where the score is high, the flow of
    the gradient falls, and the unit stays; where it is below zero the flow rises. The loss is taken
    on logits divided by a temperature.

    **A unit whose parameters are all zero has no part in anything: it takes the lowest score of its
    group. Where an operator of the network has no second derivative, H g is a central difference of
    gradients along g.** Both are listed in :attr:`notes`.

    References:
        [Wang2020grasp] C. Wang et al. Picking Winning Tickets Before Training by Preserving
        Gradient Flow. ICLR 2020.
    """

    name = "grasp"

    def __init__(
        self, *, temperature: float = 200.0, images: int = 32, loss: Loss = cross_entropy
    ) -> None:
        """Store parameters.

        Args:
            temperature: What logits are divided by; the loss then gets them alone.
            images: Images of one backward pass.
            loss: Mean loss of a batch, from the model's output and the targets.
        """
        super().__init__(images=images, loss=loss)
        self.temperature = temperature

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        model = gradient_copy(network)
        named = named_parameters(model)
        sites = {group.name: weight_sites(group, named) for group in network.groups}
        weights = {member.path: weight for found in sites.values() for member, weight in found}
        mean = mean_gradients(model, weights, batches, loss=self._cooled, images=self.images)
        curved = {path: torch.zeros_like(gradient) for path, gradient in mean.items()}
        seen = 0
        for inputs, targets in labelled(batches, self.images, model) if weights else ():
            seen += len(inputs)
            try:
                along = self._hessian_along(model, weights, mean, inputs, targets)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                reason = "an operator has no second derivative; differences of gradients were taken"
                self.notes = {group.name: reason for group in network.groups}
                along = self._difference_along(model, weights, mean, inputs, targets)
            for path, product in along.items():
                curved[path] += len(inputs) / seen * (widened(product) - curved[path])
        effect = {path: weights[path] * product for path, product in curved.items()}
        scores = effect_scores(effect, sites)
        return self._without_empty(network, scores)

    def _without_empty(
        self, network: Network, scores: dict[str, Float[np.ndarray, " units"]]
    ) -> dict[str, Float[np.ndarray, " units"]]:
        """Return the scores with empty units lowest, and note them."""
        named = named_parameters(network.model)
        notes = dict(self.notes)
        for group in network.groups:
            rows = [unit_rows(weight, member) for member, weight in parameter_sites(group, named)]
            empty = ~torch.cat(rows, 1).any(1).cpu().numpy()
            if empty.any():
                scores[group.name][empty] = scores[group.name].min()
                notes[group.name] = f"{empty.sum()} units are zero already; scored lowest"
        self.notes = notes
        return scores

    def _cooled(self, output: Any, targets: Tensor) -> Tensor:
        """Return the loss of logits over the temperature."""
        logits = logits_of(output)
        return self.loss(output if logits is None else logits / self.temperature, targets)

    def _hessian_along(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        direction: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """Return the Hessian of the mean loss of one batch times a direction.

        Raises:
            RuntimeError: An operator has no second derivative.
        """
        for weight in weights.values():
            weight.requires_grad_(True)
        wanted = list(weights.values())
        with evaluating(model), torch.enable_grad():
            loss = self._cooled(model(inputs), targets)
            slopes = torch.autograd.grad(
                loss, wanted, create_graph=True, allow_unused=True, materialize_grads=True
            )
            slope = torch.stack(
                [(s * direction[path]).sum() for path, s in zip(weights, slopes, strict=True)]
            ).sum()
            found = torch.autograd.grad(slope, wanted, allow_unused=True, materialize_grads=True)
        for weight in weights.values():
            weight.requires_grad_(False)
        return dict(zip(weights, found, strict=True))

    def _difference_along(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        direction: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """Return the Hessian times a direction as the change of the gradient along it."""
        before = {path: weight.detach().clone() for path, weight in weights.items()}
        size, length = (
            sum(float(values.double().square().sum()) for values in tensors.values()) ** 0.5
            for tensors in (before, direction)
        )
        step = _STEP * size / (length or 1.0)
        slopes = []
        with torch.no_grad():
            for signed in (step, -step):
                for path, weight in weights.items():
                    weight.copy_(before[path] + signed * direction[path])
                slopes.append(gradients(model, weights, inputs, targets, self._cooled))
            for path, weight in weights.items():
                weight.copy_(before[path])
        return {path: (slopes[0][path] - slopes[1][path]) / (2 * step) for path in weights}


#: Length of a step along the gradient, as a share of that of all weights.
_STEP = 1e-3
