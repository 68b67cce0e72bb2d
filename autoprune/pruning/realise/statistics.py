"""The cut network with the means and BatchNorm statistics of calibration images."""

from __future__ import annotations

from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.merge import Calibrated, Merger
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, Realiser
from autoprune.pruning.statistics import recalibrate_batchnorm


@REALISERS.register("statistics")
class Statistics(Realiser):
    """Cuts, lets biases take over the means of what is gone, then repairs BatchNorm statistics.

    A bias gains what the removed inputs added to it on average [An2024flap]; where a BatchNorm
    follows, its new statistics would do so anyway.

    References:
        [An2024flap] Y. An et al. Fluctuation-based Adaptive Structured Pruning for Large Language
        Models. AAAI 2024.
    """

    name = "statistics"

    def prepare(self, network: Network, batches: Batches) -> None:
        """Measure the means of what every reader reads, in one dense pass."""
        calibrated = Calibrated.of(network, batches, means_only=True)
        self.merger, self.batches = Merger(calibrated), batches

    def __call__(self, plan: PruningPlan) -> nn.Module:
        """Return the cut network with repaired biases and statistics."""
        model = self.merger.cut(plan)
        recalibrate_batchnorm(model, self.batches)
        return model
