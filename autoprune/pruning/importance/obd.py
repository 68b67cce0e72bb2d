"""The curvature of the loss along every weight."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters, parameter_sites
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import (
    GradientCriterion,
    Loss,
    cross_entropy,
    effect_scores,
    gradient_copy,
    mean_gradients,
)


@CRITERIA.register("obd")
class OBD(GradientCriterion):
    r"""Scores a unit by :math:`\frac{1}{2} \sum_w w^2 h_w` over all its parameters [LeCun1989obd].

    :math:`h_w = E_n [(\partial L_n / \partial w)^2]` stands for the diagonal of the Hessian; the
    sum is over everything that goes with the unit, biases and normalisations included. The scores
    estimate the rise of the loss and compare across groups.

    References:
        [LeCun1989obd] Y. LeCun et al. Optimal Brain Damage. NeurIPS 1989.
    """

    name = "obd"
    comparable = True

    def __init__(self, *, images: int = 1, loss: Loss = cross_entropy) -> None:
        """Store parameters.

        Args:
            images: Images per gradient. One is the formula; more are faster, and h is then the mean
                square of mean gradients, in which images cancel.
            loss: Mean loss of a batch, from the model's output and the targets.
        """
        super().__init__(images=images, loss=loss)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        model = gradient_copy(network)
        named = named_parameters(model)
        sites = {group.name: parameter_sites(group, named) for group in network.groups}
        weights = {member.path: weight for found in sites.values() for member, weight in found}
        squares = mean_gradients(
            model, weights, batches, loss=self.loss, images=self.images, power=2
        )
        rise = {path: weights[path].square() * square / 2 for path, square in squares.items()}
        return effect_scores(rise, sites)
