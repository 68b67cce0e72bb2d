"""Magnitude on a scale that all layers share."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.aggregate import magnitude, named_parameters, normalised
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion


@CRITERIA.register("lamp")
class Lamp(Criterion):
    r"""Scores a unit by its squared norm over that of all units no smaller [Lee2021lamp].

    .. math:: s_c = \frac{\lVert W_c \rVert^2}{\sum_{v : \lVert W_v \rVert \ge \lVert W_c \rVert}
        \lVert W_v \rVert^2}

    The channel form: norms are over all weights that write and read a unit, added up without
    normalisation. Within a group this ranks as they do; the largest unit of every group scores 1
    unless several share that norm, so one threshold for all groups leaves none empty.

    References:
        [Lee2021lamp] J. Lee et al. Layer-adaptive Sparsity for the Magnitude-based Pruning. ICLR
        2021.
    """

    name = "lamp"
    needs = "nothing"
    family = "weight-dependent"
    comparable = True

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        named = named_parameters(network.model)
        return {
            group.name: normalised(
                magnitude(group, named, power=2, normaliser="none", reduce="sum"), "lamp"
            )
            for group in network.groups
        }
