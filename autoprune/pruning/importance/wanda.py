"""Weights times the size of what they read."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from autoprune.pruning.activations import ColumnCriterion, ColumnMoments
from autoprune.pruning.criterion import CRITERIA


@CRITERIA.register("wanda")
class Wanda(ColumnCriterion):
    r"""Scores a unit by the weights that read it times the size of what they read [Sun2024wanda].

    .. math:: \sum_i |W_{ic}| \, \lVert x_c \rVert_2

    The channel form: the paper compares single weights within an output row, here all weights that
    read a channel are added up. The norm is the root mean square over images and positions; a
    factor between the two is the same for all units of a reader.

    References:
        [Sun2024wanda] M. Sun et al. A Simple and Effective Pruning Approach for Large Language
        Models. ICLR 2024.
    """

    name = "wanda"

    def score_columns(
        self, moments: ColumnMoments, weights: Float[Tensor, "columns entries"]
    ) -> Float[Tensor, " columns"]:
        """Return the sum of absolute weights times the root mean square of every channel."""
        return weights.abs().sum(1) * moments.square.sqrt()
