"""What turns a plan into a network that works, and the registry of all ways to do so."""

from __future__ import annotations

import inspect
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


def build_realiser(name: str, network: Network, batches: Batches, **shared: object) -> Realiser:
    """Return the realiser called ``name``, prepared for ``network``.

    Args:
        name: A name in :data:`REALISERS`.
        network: The traced network.
        batches: Calibration data.
        **shared: What is computed already, for a realiser whose constructor takes it by that name.

    Raises:
        UnknownNameError: No such realiser.
    """
    taken = inspect.signature(REALISERS[name]).parameters
    realiser = REALISERS[name](**{key: value for key, value in shared.items() if key in taken})
    realiser.prepare(network, batches)
    return realiser
