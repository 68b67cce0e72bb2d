"""What a weight is worth when all later ones can make up for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.network.network import Network
from autoprune.pruning.activations import columns, site_scores
from autoprune.pruning.aggregate import checked_normaliser, combine, named_parameters
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.gram import InputMoments, measure
from autoprune.pruning.magnitude import or_magnitude
from autoprune.pruning.reads import Reader


@CRITERIA.register("sparsegpt")
class SparseGPT(Criterion):
    r"""Scores a unit by :math:`\sum_i W_{ic}^2 / U_{cc}^2` over its readers [Frantar2023sparsegpt].

    :math:`U` is the upper Cholesky factor of :math:`H^{-1}`, :math:`H = 2 E[x x^T] + \lambda I`,
    :math:`\lambda = 0.01 \operatorname{mean} \operatorname{diag} 2 E[x x^T]`. :math:`U_{cc}^2` is
    the diagonal of the inverse for the columns from c on: the paper settles columns from left to
    right, and only later ones make up for what goes, so later columns score higher where inputs
    repeat each other. The channel form adds up all weights that read a channel, kernel taps
    included, and takes the channels of a unit together; weights are not changed. The scores of each
    reader are normalised, then averaged over readers.

    **Groups whose readers are not all known, never ran, or read too many channels for a matrix of
    their moments, are scored by the L2 magnitude of their weights** and listed in :attr:`notes`.

    References:
        [Frantar2023sparsegpt] E. Frantar, D. Alistarh. SparseGPT: Massive Language Models Can Be
        Accurately Pruned in One-Shot. ICML 2023.
    """

    name = "sparsegpt"
    needs = "inputs"
    family = "activation-based"

    def __init__(self, *, damping: float = 0.01, normaliser: str = "mean") -> None:
        """Store parameters.

        Args:
            damping: Lambda as a share of the mean diagonal of the Hessian.
            normaliser: How the scores of each reader are scaled, in ``aggregate.NORMALISERS``.
        """
        self.damping = damping
        self.normaliser = checked_normaliser(normaliser)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        measured = measure(network, batches)
        weights = named_parameters(network.model)
        factors: dict[str, Float[Tensor, " columns"]] = {}

        def site(reader: Reader) -> Float[np.ndarray, " units"]:
            moments = measured.moments[reader.path]
            if moments.second is None:
                return np.zeros(len(reader.indices))
            if reader.path not in factors:
                factors[reader.path] = self._factor(moments)
            places, rows = columns(reader, weights[reader.path].detach())
            scores = rows.double().square().sum(1) / factors[reader.path].square()
            sums: Float[np.ndarray, " units"] = scores.cpu().numpy()[places].sum(1)
            return sums

        found = site_scores(measured.readers, measured.moments, site, self._of_group)
        scores, self.notes = or_magnitude(network, found)
        return scores

    def _factor(self, moments: InputMoments) -> Float[Tensor, " columns"]:
        """Return the diagonal of the Cholesky factor, NaN where moments are not finite."""
        hessian = 2 * moments.gram(centred=False)
        size = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        ridge = self.damping * torch.where(size > 0, size, 1.0)
        damped = hessian + ridge * torch.eye(hessian.shape[-1], dtype=hessian.dtype).to(hessian)
        # The factor of the inverse has the inverse diagonal of the factor of the flipped matrix.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(-1, -2))
        diagonal = 1 / lower.diagonal(dim1=-2, dim2=-1).flip(-1)
        factor: Tensor = diagonal.where(failed[:, None] == 0, torch.nan).flatten()
        return factor

    def _of_group(
        self, sites: Sequence[Float[np.ndarray, " units"]]
    ) -> Float[np.ndarray, " units"] | str:
        """Return the scores of a group from those of each reader, or why there are none."""
        if not np.any(sites):
            return "its readers have no weight, or read too many channels"
        return combine(sites, normaliser=self.normaliser)
