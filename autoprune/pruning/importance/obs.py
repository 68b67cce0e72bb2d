"""Structured optimal brain surgeon over all readers of a group."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from autoprune.network.network import Network
from autoprune.pruning.aggregate import magnitude, named_parameters
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.elimination import Elimination
from autoprune.pruning.merge import Calibrated


@CRITERIA.register("obs")
class StructuredObs(Criterion):
    r"""Scores a unit by the damage done when it goes, all less important ones gone before it.

    Every weight that reads the group is a least-squares problem in its units: what the others
    cannot take over of a unit, at best, is its cost, :math:`\sum_j \lVert W_j[:,c] \rVert^2 /
    (P_j[c,c] E_j)` with :math:`P_j = (G_j + \lambda \bar g I)^{-1}` for inputs of covariance
    :math:`G_j` and outputs of energy :math:`E_j` [Hassibi1993obs, Kurtic2023ziplm]. The cheapest
    unit goes first and is projected out; scores are the accumulated costs, so that the sorted
    scores of a group are its damage curve: the relative error in the outputs of its readers, summed
    over readers, if the rest is merged (:mod:`autoprune.pruning.merge`). They compare across
    groups.

    **Where no reader of a group is known, its units are ranked by their squared weights**,
    normalised to a mean of 1 over units; such groups are listed in :attr:`notes`.

    References:
        [Hassibi1993obs] B. Hassibi, D. G. Stork. Second order derivatives for network pruning:
        Optimal Brain Surgeon. NeurIPS 1993.
        [Kurtic2023ziplm] E. Kurtic, E. Frantar, D. Alistarh. ZipLM: Inference-Aware Structured
        Pruning of Language Models. NeurIPS 2023.
    """

    name = "obs"
    needs = "inputs"
    family = "weight-dependent"
    comparable = True

    def __init__(self, calibrated: Calibrated | None = None) -> None:
        """Store parameters.

        Args:
            calibrated: What the calibration images told about the network, where it is known
                already; the batches are not read then.
        """
        self.calibrated = calibrated

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        if not network.groups:
            return {}
        calibrated = self.calibrated or Calibrated.of(network, batches)
        found = {group.name: calibrated.elimination(group) for group in network.groups}
        self.notes = {
            name: "no reader is known; ranked by squared weights"
            for name, elimination in found.items()
            if elimination is None
        }
        named = named_parameters(network.model)
        return {
            group.name: (
                magnitude(group, named, power=2)
                if (elimination := found[group.name]) is None
                else damage_by_unit(elimination)
            )
            for group in network.groups
        }


def damage_by_unit(elimination: Elimination) -> Float[np.ndarray, " units"]:
    """Return the accumulated damage once each unit is gone."""
    scores = np.empty(len(elimination.order))
    scores[elimination.order] = elimination.damage[1:]
    return scores
