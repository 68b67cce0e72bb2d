"""How often a unit is silent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from autoprune.pruning.activations import ColumnCriterion, ColumnMoments
from autoprune.pruning.criterion import CRITERIA


@CRITERIA.register("apoz")
class APoZ(ColumnCriterion):
    r"""Scores a unit by :math:`1 - E [x_c = 0]` of what its readers read [Hu2016trimming].

    One minus the average percentage of zeros, over images and positions, as a fraction. Only
    nonlinearities that are exactly zero somewhere make zeros. **A group whose readers see none is
    scored by the L2 magnitude of its weights instead** and is listed in :attr:`notes`.

    References:
        [Hu2016trimming] H. Hu et al. Network Trimming: A Data-Driven Neuron Pruning Approach
        towards Efficient Deep Architectures. arXiv:1607.03250, 2016.
    """

    name = "apoz"

    def __init__(self, *, normaliser: str = "none", reduce: str = "mean") -> None:
        """Store parameters.

        Args:
            normaliser: How the scores of each reader are scaled, in ``aggregate.NORMALISERS``.
            reduce: How readers become one, a name in ``aggregate.REDUCERS``.
        """
        super().__init__(normaliser=normaliser, reduce=reduce)

    def score_columns(
        self, moments: ColumnMoments, weights: Float[Tensor, "columns entries"]
    ) -> Float[Tensor, " columns"]:
        """Return the fraction of every input channel that is not zero."""
        return 1 - moments.zeros + 0 * moments.mean  # the mean is NaN where a value is

    def group_score(
        self, sites: Sequence[Float[np.ndarray, " units"]]
    ) -> Float[np.ndarray, " units"] | str:
        """Return the scores of a group, or that there are no zeros to count."""
        if np.min(sites) == 1:
            return "its readers see no zeros"
        return super().group_score(sites)
