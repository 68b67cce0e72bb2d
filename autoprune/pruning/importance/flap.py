"""Weights times how much what they read fluctuates."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from autoprune.pruning.activations import ColumnCriterion, ColumnMoments
from autoprune.pruning.criterion import CRITERIA


@CRITERIA.register("flap")
class Flap(ColumnCriterion):
    r"""Scores a unit by :math:`\operatorname{Var}(x_c) \lVert W_{:,c} \rVert_2^2` [An2024flap].

    The weighted input feature variance (WIFV) of every reader: what is constant, a bias can stand
    in for. The variance is over images and positions. By default each reader's scores are
    standardised, ``(s - mean) / std``, so that they compare across groups as in the paper's
    adaptive structure; ``normaliser="none"`` leaves them as they are.

    References:
        [An2024flap] Y. An et al. Fluctuation-based Adaptive Structured Pruning for Large Language
        Models. AAAI 2024.
    """

    name = "flap"
    comparable = True

    def __init__(self, *, normaliser: str = "gaussian", reduce: str = "mean") -> None:
        """Store parameters.

        Args:
            normaliser: How the scores of each reader are scaled, in ``aggregate.NORMALISERS``.
            reduce: How readers become one, a name in ``aggregate.REDUCERS``.
        """
        super().__init__(normaliser=normaliser, reduce=reduce)

    def score_columns(
        self, moments: ColumnMoments, weights: Float[Tensor, "columns entries"]
    ) -> Float[Tensor, " columns"]:
        """Return the variance times the squared norm of the weights of every channel."""
        return moments.variance * weights.square().sum(1)
