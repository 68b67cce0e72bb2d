"""The cut network whose remaining units have taken over what they can of the others."""

from __future__ import annotations

from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.merge import Calibrated, Merger
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, Realiser
from autoprune.pruning.statistics import recalibrate_batchnorm


@REALISERS.register("merge")
class Merge(Realiser):
    """Merges in closed form, then repairs the BatchNorm statistics layer by layer."""

    name = "merge"

    def __init__(self, calibrated: Calibrated | None = None) -> None:
        """Store parameters.

        Args:
            calibrated: What the calibration images told about the network, where it is known
                already.
        """
        self.calibrated = calibrated

    def prepare(self, network: Network, batches: Batches) -> None:
        """Measure what every reader reads, in one dense pass."""
        calibrated = self.calibrated or Calibrated.of(network, batches)
        self.merger, self.batches = Merger(calibrated), batches

    def __call__(self, plan: PruningPlan) -> nn.Module:
        """Return the merged network with repaired statistics."""
        model = self.merger.cut(plan)
        recalibrate_batchnorm(model, self.batches)
        return model
