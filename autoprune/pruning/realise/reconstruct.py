"""The merged network, solved anew layer by layer against the dense one."""

from __future__ import annotations

from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.merge import Calibrated, Merger
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, Realiser
from autoprune.pruning.reconstruct import MOST_UNKNOWNS, ROWS, Reconstruction


@REALISERS.register("reconstruct")
class Reconstruct(Realiser):
    """Merges in closed form, then solves every weight behind the first change by least squares."""

    name = "reconstruct"

    def __init__(
        self,
        calibrated: Calibrated | None = None,
        *,
        rows: int = ROWS,
        most_unknowns: int = MOST_UNKNOWNS,
    ) -> None:
        """Store parameters.

        Args:
            calibrated: What the calibration images told about the network, where it is known
                already.
            rows: Sampled positions of one least-squares problem, more where it has many unknowns.
            most_unknowns: A problem with more unknowns per output is left to merging.
        """
        self.calibrated, self.rows, self.most_unknowns = calibrated, rows, most_unknowns

    def prepare(self, network: Network, batches: Batches) -> None:
        """Measure what every reader reads, and what the dense network has behind it."""
        self.merger = Merger(self.calibrated or Calibrated.of(network, batches))
        self.reconstruction = Reconstruction(
            network, batches, rows=self.rows, most_unknowns=self.most_unknowns
        )

    def __call__(self, plan: PruningPlan) -> nn.Module:
        """Return the reconstructed network."""
        plan = self.merger.surgeon.complete(plan)
        model = self.merger.cut(plan)
        self.reconstruction.repair(model, plan)
        return model
