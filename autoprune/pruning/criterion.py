"""What an importance criterion is, and the registry of all of them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from autoprune.errors import PruningError
from autoprune.network.network import Network
from autoprune.registry import Registry

#: Calibration data: ``(inputs, targets)`` per batch, as ``Task.calibration`` returns them.
Batches = Sequence[tuple[Tensor, Tensor]]

#: What a criterion reads besides the network.
Needs = Literal["nothing", "inputs", "labels"]

#: Where a criterion stands in the survey [He2024survey]; ``"baseline"`` stands outside it.
Family = Literal[
    "weight-dependent",
    "activation-based",
    "regularisation",
    "optimisation tools",
    "dynamic",
    "architecture search",
    "baseline",
]


class Criterion(ABC):
    """Says how important every unit of every channel group is.

    A new criterion is one file in ``autoprune/pruning/importance`` with a subclass under
    ``@CRITERIA.register(name)`` that implements :meth:`_score`, and a test that runs it through
    :class:`autoprune.testing.criteria.CriterionSuite`.

    Attributes:
        name: The name in :data:`CRITERIA`.
        needs: What :meth:`score` reads of its batches.
        family: Where the criterion stands in the survey [He2024survey].
        comparable: Whether scores mean the same in all groups, so that they can be added up.
        informed: Whether the scores follow from the network; false for a random baseline.
        notes: For each group that the last :meth:`score` could not treat by its own formula, what
            it did instead.

    References:
        [He2024survey] Y. He, L. Xiao. Structured Pruning for Deep Convolutional Neural Networks: A
        Survey. TPAMI 46(5), 2024.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]
    family: ClassVar[Family]
    comparable: ClassVar[bool] = False
    informed: ClassVar[bool] = True
    notes: Mapping[str, str] = MappingProxyType({})

    @final
    def score(
        self, network: Network, batches: Batches = ()
    ) -> dict[str, Float[np.ndarray, " units"]]:
        """Return the importance of every unit of every group; the highest are kept.

        Scores rank the units of one group. Across groups they compare only where the criterion
        says so.

        Args:
            network: A traced network; its model is read, never changed.
            batches: Calibration data; may be empty where :attr:`needs` is ``"nothing"``, and the
                targets are not read where it is ``"inputs"``.

        Returns:
            For each group by name, one finite number per unit.

        Raises:
            PruningError: The data the criterion needs are missing, or a score is not finite.
        """
        if self.needs != "nothing" and not batches:
            raise PruningError(
                f"criterion {self.name!r} needs {self.needs} and got no batches; pass "
                "task.calibration(samples), or take a criterion that needs nothing, such as 'l2'"
            )
        self.notes = {}
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            scores = self._score(network, batches)
        for group in network.groups:
            _check(self.name, group.name, group.size, scores)
        return scores

    @abstractmethod
    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        """Return the scores; :meth:`score` checks ``batches`` before and the result after."""


#: Every criterion by name; an entry is the class, to be called with its own keyword options.
CRITERIA: Registry[Callable[..., Criterion]] = Registry(
    "criterion", package="autoprune.pruning.importance"
)


def build_criterion(name: str, *, seed: int = 0, **shared: object) -> Criterion:
    """Return the criterion called ``name`` with its default options.

    Args:
        name: A name in :data:`CRITERIA`.
        seed: For a criterion whose constructor takes a seed; the others draw no numbers.
        **shared: What is computed already, for a criterion whose constructor takes it by that name.

    Raises:
        UnknownNameError: No such criterion.
    """
    build = CRITERIA[name]
    taken = inspect.signature(build).parameters
    return build(**{key: value for key, value in {"seed": seed, **shared}.items() if key in taken})


def _check(
    criterion: str, group: str, size: int, scores: Mapping[str, Float[np.ndarray, " units"]]
) -> None:
    """Raise unless ``scores`` holds ``size`` finite numbers for ``group``."""
    found = scores.get(group)
    if found is None or found.shape != (size,):
        came = "nothing" if found is None else f"an array of shape {found.shape}"
        raise PruningError(
            f"criterion {criterion!r} should give {size} scores for group {group!r}, but gave "
            f"{came}; correct its _score"
        )
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise PruningError(
            f"criterion {criterion!r} gave {len(bad)} of {size} scores for group {group!r} that "
            f"are not finite (first: unit {bad[0]}); look for NaN or overflow in the weights that "
            "the group cuts, and in the calibration data where the criterion reads them"
        )
