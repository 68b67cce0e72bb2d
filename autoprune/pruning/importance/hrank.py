"""The rank of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoprune.network.network import Network
from autoprune.pruning.activations import (
    Gatherer,
    columns,
    gather,
    known_readers,
    site_scores,
)
from autoprune.pruning.aggregate import combine, named_parameters, widened
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.pruning.magnitude import or_magnitude
from autoprune.pruning.reads import Convolution, Product, Reader


@CRITERIA.register("hrank")
class HRank(Criterion):
    r"""Scores a unit by the mean rank of the maps its readers read [Lin2020hrank].

    A map is the channel of one image as a matrix, height by width, as convolutions read it; the
    mean is over images, over the maps of a unit, and over readers. **A group whose readers see no
    maps (behind global pooling, in a transformer), or whose maps all have the same rank, is scored
    by the L2 magnitude of its weights instead** and is listed in :attr:`notes`.

    References:
        [Lin2020hrank] M. Lin et al. HRank: Filter Pruning using High-Rank Feature Map. CVPR 2020.
    """

    name = "hrank"
    needs = "inputs"
    family = "activation-based"

    def __init__(self, *, images: int = 128) -> None:
        """Store parameters.

        Args:
            images: Images whose maps count, the first; ranks differ little from batch to batch.
        """
        self.images = images

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        known = known_readers(network)
        weights = named_parameters(network.model)
        gathered = gather(network, batches, known, lambda path: _Ranks(self.images))

        def site(reader: Reader) -> Float[np.ndarray, " units"]:
            places, rows = columns(reader, weights[reader.path].detach())
            ranks = gathered[reader.path].means(len(rows))
            means: Float[np.ndarray, " units"] = ranks[places].mean(1)
            return means

        scores, self.notes = or_magnitude(network, site_scores(known, gathered, site, _of_group))
        return scores


def _of_group(sites: Sequence[Float[np.ndarray, " units"]]) -> Float[np.ndarray, " units"] | str:
    """Return the scores of a group from the mean ranks at each reader, zero where it sees none."""
    scores = combine([site for site in sites if site.any()] or sites, normaliser="none")
    if not scores.any():
        return "its readers see no maps of rank above zero"
    if (scores == scores[0]).all():
        return "all its maps have the same rank"
    return scores


class _Ranks(Gatherer):
    """Adds up the ranks of maps."""

    def __init__(self, images: int) -> None:
        self.left = images
        self.count = 0
        self.total: Tensor | float = 0.0

    def add(self, inputs: Tensor, how: Product | Convolution, images: int) -> None:
        """Take in one input; what has no height and width has no maps."""
        if isinstance(how, Product) or inputs.ndim < 4 or min(inputs.shape[-2:]) < 2:
            return
        maps = widened(inputs[: self.left]).flatten(2, -2)
        if not len(maps):
            return
        finite = maps.isfinite().all(-1).all(-1)
        ranks = torch.linalg.matrix_rank(maps.nan_to_num(0.0, 0.0, 0.0)).double()
        self.total = self.total + ranks.where(finite, torch.nan).sum(0)
        self.left -= len(maps)
        self.count += len(maps)

    def means(self, channels: int) -> Float[np.ndarray, " channels"]:
        """Return the mean rank of every channel, zeros where there were no maps."""
        if not isinstance(self.total, Tensor):
            return np.zeros(channels)
        found: Float[np.ndarray, " channels"] = (self.total / self.count).cpu().numpy()
        return found
