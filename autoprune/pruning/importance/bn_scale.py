"""The scale of BatchNorm layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.network.groups import ChannelGroup
from autoprune.network.network import Network
from autoprune.pruning.aggregate import combine, unit_sums
from autoprune.pruning.criterion import CRITERIA, Batches
from autoprune.pruning.magnitude import Magnitude, or_magnitude


@CRITERIA.register("bn_scale")
class BatchNormScale(Magnitude):
    r"""Scores a unit by :math:`|\gamma|` of the BatchNorm layers it passes [Liu2017slimming].

    Meaningful for networks that were trained with a penalty on :math:`\gamma`. Where a group passes
    several BatchNorm layers, each is divided by its mean over units, then they are averaged. **A
    group that passes none is scored by the L2 magnitude of its weights instead** and is listed in
    :attr:`notes`; both have mean 1 in the group, and ranks are compared within a group only.

    References:
        [Liu2017slimming] Z. Liu et al. Learning Efficient Convolutional Networks through Network
        Slimming. ICCV 2017.
    """

    name = "bn_scale"
    family = "regularisation"

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        scales = _scales(network.model)
        found = {group.name: self._group(group, scales) for group in network.groups}
        scores, self.notes = or_magnitude(
            network, found, normaliser=self.normaliser, reduce=self.reduce
        )
        return scores

    def _group(
        self, group: ChannelGroup, scales: Mapping[str, Tensor]
    ) -> Float[np.ndarray, " units"] | str:
        """Return the scores of ``group``, or why it has none."""
        sites = [
            unit_sums(scales[member.path].detach().abs(), member)
            for member in group.members
            if member.path in scales
        ]
        if not sites:
            return "passes no BatchNorm with a scale"
        return combine(sites, normaliser=self.normaliser, reduce=self.reduce)


def _scales(model: nn.Module) -> dict[str, Tensor]:
    """Return the scale of every BatchNorm layer that has one, by parameter name."""
    return {
        f"{path}.weight" if path else "weight": module.weight
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and module.weight is not None
    }
