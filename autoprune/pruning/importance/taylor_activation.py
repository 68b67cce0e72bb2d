"""The first-order change of the loss when an activation is set to zero."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.network.network import Network
from autoprune.pruning.activations import known_readers
from autoprune.pruning.aggregate import combine
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import EVERYWHERE, GradientCriterion, gate_rows


@CRITERIA.register("taylor_activation")
class TaylorActivation(GradientCriterion):
    r"""Scores a unit by :math:`E_n |\frac{1}{M} \sum_m x_{nm} g_{nm}|` [Molchanov2017pruning].

    x is the unit's activation as a weight reads it, g the gradient of the loss of image n by it
    through that weight alone; m runs over positions. The scores at each reader are divided by their
    Euclidean norm over units, as the paper does for each layer, then averaged over readers.

    **Where not all readers of a group are known, the product is that of every parameter of the unit
    and its gradient**; such groups are listed in :attr:`notes`.

    References:
        [Molchanov2017pruning] P. Molchanov et al. Pruning Convolutional Neural Networks for
        Resource Efficient Inference. ICLR 2017.
    """

    name = "taylor_activation"

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        known = known_readers(network)
        self.notes = {name: EVERYWHERE for name, found in known.items() if not found}
        total: dict[str, list[Tensor]] = {}
        for rows in gate_rows(network, known, batches, loss=self.loss, images=self.images):
            for name, at_readers in rows.items():
                sums = [gates.double().abs().sum(0) for gates in at_readers]
                before = total.get(name, [torch.zeros_like(one) for one in sums])
                total[name] = [one + other for one, other in zip(before, sums, strict=True)]
        # Numbers of images and positions are the same for all units of a reader and cancel.
        return {
            name: combine([site.cpu().numpy() for site in sites], normaliser="norm")
            for name, sites in total.items()
        }
