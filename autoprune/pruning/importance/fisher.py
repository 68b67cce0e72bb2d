"""The curvature of the loss along gates on units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.network.network import Network
from autoprune.pruning.activations import known_readers
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.gates import EVERYWHERE, GradientCriterion, Loss, cross_entropy, gate_rows
from autoprune.pruning.greedy import removal_order


@CRITERIA.register("fisher")
class Fisher(GradientCriterion):
    r"""Scores a unit by :math:`\frac{1}{2} E_n [g_{nc}^2]` of its gate [Liu2021groupfisher].

    :math:`g_{nc} = \partial L_n / \partial m_c` is the gradient of the loss of image n by a gate
    that multiplies unit c wherever a weight reads it, summed over readers before squaring. The
    scores estimate the rise of the loss and compare across groups.

    :math:`F = E_n [g_n g_n^T]` over the units of a group costs next to nothing more, and estimates
    what removing a set S of them together does, :math:`\frac{1}{2} 1_S^T F 1_S`. With ``joint`` the
    units go one after another by that, and the score is the number of units that went before, so
    it ranks the units of one group only.

    **Where not all readers of a group are known, the gate multiplies every parameter of the unit
    instead**, what writes it included; such groups are listed in :attr:`notes`.

    References:
        [Liu2021groupfisher] L. Liu et al. Group Fisher Pruning for Practical Network Compression.
        ICML 2021.
    """

    name = "fisher"
    comparable = True

    def __init__(
        self, *, joint: bool = False, images: int = 32, loss: Loss = cross_entropy
    ) -> None:
        """Store parameters.

        Args:
            joint: Rank by the whole matrix, not by its diagonal.
            images: Images of one backward pass; each has its own gradient all the same.
            loss: Mean loss of a batch, from the model's output and the targets.
        """
        super().__init__(images=images, loss=loss)
        self.joint = joint

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        if self.joint:
            matrices = self.matrices(network, batches)
            return {name: removal_order(matrix / 2) for name, matrix in matrices.items()}
        squares = self._moments(network, batches, lambda rows: rows.square().sum(0))
        return {name: square / 2 for name, square in squares.items()}

    def matrices(
        self, network: Network, batches: Batches
    ) -> dict[str, Float[np.ndarray, "units units"]]:
        """Return F of every group by name.

        Args:
            network: A traced network; its model stays as it is.
            batches: Inputs and targets.
        """
        return self._moments(network, batches, lambda rows: rows.T @ rows)

    def _moments(
        self, network: Network, batches: Batches, product: Callable[[Tensor], Tensor]
    ) -> dict[str, Float[np.ndarray, "..."]]:
        """Return the mean over images of a product of their gate gradients, by group name."""
        known = known_readers(network)
        self.notes = {name: EVERYWHERE for name, found in known.items() if not found}
        total: dict[str, Tensor] = {}
        seen = 0
        for rows in gate_rows(network, known, batches, loss=self.loss, images=self.images):
            for name, at_readers in rows.items():
                gates = torch.stack(at_readers).sum(0).double()
                total[name] = total.get(name, 0) + product(gates)
                count = len(gates)
            seen += count if rows else 0
        return {name: (sums / seen).cpu().numpy() for name, sums in total.items()}
