"""The cut network with the BatchNorm statistics of calibration images."""

from __future__ import annotations

from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, Realiser
from autoprune.pruning.statistics import recalibrate_batchnorm
from autoprune.pruning.surgery import Surgeon


@REALISERS.register("statistics")
class Statistics(Realiser):
    """Cuts, then repairs the BatchNorm statistics layer by layer."""

    name = "statistics"

    def prepare(self, network: Network, batches: Batches) -> None:
        """Index what the groups cut."""
        self.surgeon, self.batches = Surgeon(network), batches

    def __call__(self, plan: PruningPlan) -> nn.Module:
        """Return the cut network with repaired statistics."""
        model = self.surgeon.cut(plan)
        recalibrate_batchnorm(model, self.batches)
        return model
