"""The distance of a unit's weights to all others."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.aggregate import (
    checked_normaliser,
    combine,
    named_parameters,
    unit_rows,
    weight_sites,
)
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.magnitude import or_magnitude


@CRITERIA.register("fpgm")
class FPGM(Criterion):
    r"""Scores a unit by the distances of its weights to those of all others [He2019fpgm].

    .. math:: \sum_v \lVert w_c - w_v \rVert_2

    The unit with the smallest sum is closest to the geometric median: the others can stand in for
    it. Distances are between the weights themselves, taken for each site (the rows of one layer,
    the columns of another); sites are divided by their mean, then averaged. **A unit whose weights
    are all zero is replaced by nothing at all: it scores zero, whatever its distances. Two
    units are as far from each other: they are scored by L2 magnitude.** Such groups are listed in
    :attr:`notes`.

    References:
        [He2019fpgm] Y. He et al. Filter Pruning via Geometric Median for Deep Convolutional Neural
        Networks Acceleration. CVPR 2019.
    """

    name = "fpgm"
    needs = "nothing"
    family = "weight-dependent"

    def __init__(self, *, normaliser: str = "mean") -> None:
        """Store parameters.

        Args:
            normaliser: How the scores of each site are scaled, in ``aggregate.NORMALISERS``.
        """
        self.normaliser = checked_normaliser(normaliser)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        named = named_parameters(network.model)
        found: dict[str, Float[np.ndarray, " units"] | str] = {}
        empty: dict[str, str] = {}
        for group in network.groups:
            rows = [unit_rows(weight, member) for member, weight in weight_sites(group, named)]
            sites = [torch.cdist(row, row, compute_mode=_EXACT).sum(1) for row in rows]
            scores = combine(
                [site.double().cpu().numpy() for site in sites], normaliser=self.normaliser
            )
            zero = ~torch.cat(rows, 1).any(1).cpu().numpy()
            if zero.any():
                empty[group.name] = f"{zero.sum()} units are zero already; scored zero"
            two = "two units are as far from each other"
            found[group.name] = np.where(zero, 0.0, scores) if group.size > 2 else two
        scored, notes = or_magnitude(network, found)
        self.notes = empty | notes
        return scored


#: Distances by differences; by matrix products they are off by rounding where they are small.
_EXACT = "donot_use_mm_for_euclid_dist"
