"""What turns a plan into a network that works, and the registry of all ways to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import nn

from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.plan import PruningPlan
from autoprune.registry import Registry


class Realiser(ABC):
    """Builds pruned networks of one network, without labels and without training.

    A new one is one file in ``autoprune/pruning/realise`` with a subclass under
    ``@REALISERS.register(name)`` that implements :meth:`prepare` and :meth:`__call__`, and a test
    that runs it through :class:`autoprune.testing.realisers.RealiserSuite`. It is sent to worker
    processes after its preparation.

    Attributes:
        name: The name in :data:`REALISERS`.
        reads_inputs: Whether it needs calibration images.
    """

    name: ClassVar[str]
    reads_inputs: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, network: Network, batches: Batches) -> None:
        """Compute what all candidates share.

        Args:
            network: The traced network; its model is read, never changed.
            batches: Calibration data; targets are not read.
        """

    @abstractmethod
    def __call__(self, plan: PruningPlan) -> nn.Module:
        """Return the network that a plan makes, in eval mode where the original is.

        It shares nothing writable with the original or with another result.

        Raises:
            PruningError: The plan does not fit the network.
        """


#: Every realiser by name; an entry is the class, called with its own keyword options.
REALISERS: Registry[Callable[..., Realiser]] = Registry(
    "realisation", package="autoprune.pruning.realise"
)


def build_realiser(name: str, network: Network, batches: Batches) -> Realiser:
    """Return the realiser called ``name``, prepared for ``network``.

    Raises:
        UnknownNameError: No such realiser.
    """
    realiser = REALISERS[name]()
    realiser.prepare(network, batches)
    return realiser
