"""How sensitive the loss is to every weight."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters, weight_sites
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import (
    GradientCriterion,
    effect_scores,
    gradient_copy,
    mean_gradients,
)


@CRITERIA.register("snip")
class Snip(GradientCriterion):
    r"""Scores a unit by how sensitive the loss is to its weights [Lee2019snip].

    .. math:: \sum_w \left| w \, \frac{\partial L}{\partial w} \right|

    L is the mean loss over all data, w runs over the weights that write and read the unit, and all
    is divided by the sum over the weights of all groups: scores compare across groups. The paper
    scores single weights of an untrained network; the channel form adds them up.

    References:
        [Lee2019snip] N. Lee et al. SNIP: Single-shot Network Pruning based on Connection
        Sensitivity. ICLR 2019.
    """

    name = "snip"
    comparable = True

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        model = gradient_copy(network)
        named = named_parameters(model)
        sites = {group.name: weight_sites(group, named) for group in network.groups}
        weights = {member.path: weight for found in sites.values() for member, weight in found}
        mean = mean_gradients(model, weights, batches, loss=self.loss, images=self.images)
        effect = {path: (weights[path] * gradient).abs() for path, gradient in mean.items()}
        whole = sum(float(values.double().sum()) for values in effect.values()) or 1.0
        return {name: sums / whole for name, sums in effect_scores(effect, sites).items()}
