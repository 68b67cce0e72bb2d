"""The first-order change of the loss when a unit is switched off."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.activations import known_readers
from autoprune.pruning.aggregate import named_parameters, parameter_sites
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import (
    EVERYWHERE,
    GradientCriterion,
    effect_scores,
    gradient_copy,
    gradients,
    labelled,
)


@CRITERIA.register("taylor")
class Taylor(GradientCriterion):
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

    Readers are those of :func:`autoprune.pruning.reads.readers`. **Where another kind of module
    holds a weight of the group, or nothing of these reads it, the gate multiplies every parameter
    of the unit instead**, what writes it included; such groups are listed in :attr:`notes`.

    References:
        [Molchanov2019taylor] P. Molchanov et al. Importance Estimation for Neural Network Pruning.
        CVPR 2019.
    """

    name = "taylor"
    comparable = True

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        model = gradient_copy(network)
        named = named_parameters(model)
        known = known_readers(network)
        self.notes = {name: EVERYWHERE for name, found in known.items() if not found}
        gates = {
            group.name: [(reader.member, named[reader.path]) for reader in known[group.name]]
            or parameter_sites(group, named)
            for group in network.groups
        }
        weights = {member.path: tensor for gate in gates.values() for member, tensor in gate}
        total = {group.name: np.zeros(group.size) for group in network.groups}
        seen = 0
        for inputs, targets in labelled(batches, self.images, model):
            slopes = gradients(model, weights, inputs, targets, self.loss)
            effect = {path: weights[path] * slope for path, slope in slopes.items()}
            for name, gate in effect_scores(effect, gates).items():
                total[name] += len(inputs) * gate**2
            seen += len(inputs)
        return {name: scores / seen for name, scores in total.items()}
