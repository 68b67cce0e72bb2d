"""Which units the next layer misses least, together."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.contributions import contribution_moments
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.greedy import removal_order
from autoprune.pruning.magnitude import or_magnitude


@CRITERIA.register("thinet")
class ThiNet(Criterion):
    r"""Scores a unit by when it goes, if the next layer shall change least [Luo2017thinet].

    Units are removed one after another, each time the one that keeps

    .. math:: \sum_{i} \Bigl( \sum_{c \in removed} \hat x_{ic} \Bigr)^2

    smallest, :math:`\hat x_{ic}` being what unit c contributes to output entry i of a reader:
    image, position and output channel are drawn at random. Several readers count alike. The score
    is the number of units that went before, so it ranks the units of one group only. The paper then
    rescales what is left by least squares; here a realisation does that.

    **Groups whose readers are not all known, or never ran, are scored by the L2 magnitude of their
    weights** and listed in :attr:`notes`.

    References:
        [Luo2017thinet] J.-H. Luo et al. ThiNet: A Filter Level Pruning Method for Deep Neural
        Network Compression. ICCV 2017.
    """

    name = "thinet"
    needs = "inputs"
    family = "activation-based"

    def __init__(self, *, samples: int = 32, seed: int = 0) -> None:
        """Store parameters.

        Args:
            samples: Output entries per image and reader.
            seed: Determines which.
        """
        self.samples = samples
        self.seed = seed

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        moments = contribution_moments(network, batches, samples=self.samples, seed=self.seed)
        found = {
            name: moment if isinstance(moment, str) else removal_order(moment)
            for name, moment in moments.items()
        }
        scores, self.notes = or_magnitude(network, found)
        return scores
