"""The pruned network as it is cut."""

from __future__ import annotations

from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, Realiser
from autoprune.pruning.surgery import Surgeon


@REALISERS.register("slice")
class Slice(Realiser):
    """Cuts and repairs nothing."""

    name = "slice"
    reads_inputs = False

    def prepare(self, network: Network, batches: Batches) -> None:
        """Index what the groups cut."""
        self.surgeon = Surgeon(network)

    def __call__(self, plan: PruningPlan) -> nn.Module:
        """Return the cut network."""
        return self.surgeon.cut(plan)
