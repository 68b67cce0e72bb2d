"""The mean size of activations."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from autoprune.pruning.activations import ColumnCriterion, ColumnMoments
from autoprune.pruning.criterion import CRITERIA


@CRITERIA.register("activation")
class Activation(ColumnCriterion):
    r"""Scores a unit by :math:`E |x_c|` of what its readers read [Muralidharan2024minitron].

    The mean is over images and positions. In a transformer these are the outputs of normalisation
    for the stream, of attention for heads, and of the nonlinearity for the hidden units.

    References:
        [Muralidharan2024minitron] S. Muralidharan et al. Compact Language Models via Pruning and
        Knowledge Distillation. NeurIPS 2024.
    """

    name = "activation"

    def score_columns(
        self, moments: ColumnMoments, weights: Float[Tensor, "columns entries"]
    ) -> Float[Tensor, " columns"]:
        """Return the mean absolute value of every input channel."""
        return moments.absolute
