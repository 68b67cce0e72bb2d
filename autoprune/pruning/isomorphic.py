"""Groups that are alike: ranking them together is fair, ranking unlike ones is not.

References:
    [Fang2024isomorphic] G. Fang et al. Isomorphic Pruning for Vision Models. ECCV 2024.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.groups import ChannelGroup
from autoprune.network.network import Network

#: A class of groups: their names in the order of the network.
Class = tuple[str, ...]


def isomorphic(network: Network) -> tuple[Class, ...]:
    """Return the groups in classes of the same structure [Fang2024isomorphic].

    Two groups have the same structure where their units are of one kind and are held by the same
    number of parameters of each sort: type of the module, name in it, dimension that is cut, kernel
    size, and whether a convolution is grouped. Widths do not matter. Classes are in the order of
    their first group.

    Example:
        >>> from autoprune.testing.networks import tiny
        >>> isomorphic(tiny("concatenation").network)
        (('left',), ('right',), ('merge',))

        One of the branches has a larger kernel.

    Args:
        network: A traced network.
    """
    classes: dict[object, list[str]] = {}
    for group in network.groups:
        classes.setdefault(_structure(network.model, group), []).append(group.name)
    return tuple(tuple(names) for names in classes.values())


def thresholds(
    scores: Mapping[str, Float[np.ndarray, " _"]], classes: Sequence[Class], *, ratio: float
) -> dict[str, float]:
    """Return for every group the score from which its units stay, one number for a whole class.

    Below it are the fraction ``ratio`` of all units of the class, rounded down; fewer where units
    share the score at the border.

    >>> thresholds({"a": np.array([1.0, 4.0]), "b": np.array([2.0, 3.0])}, [("a", "b")], ratio=0.5)
    {'a': 3.0, 'b': 3.0}

    Args:
        scores: For each group by name one number per unit, comparable within a class: of a
            criterion that says so, or ``aggregate.normalised``.
        classes: From :func:`isomorphic`; one class of all groups makes a global threshold.
        ratio: Fraction to remove, in [0, 1).

    Raises:
        PruningError: Another ratio.
    """
    if not 0 <= ratio < 1:
        raise PruningError(f"expected a ratio in [0, 1), the fraction removed, but got {ratio}")
    found = {}
    for names in classes:
        pooled = np.sort(np.concatenate([scores[name] for name in names]))
        border = float(pooled[int(ratio * len(pooled))])
        found.update(dict.fromkeys(names, border))
    return found


def _structure(model: nn.Module, group: ChannelGroup) -> object:
    """Return something equal for groups of the same structure."""
    parts = Counter(_part(model, member.path, member.dim) for member in group.members)
    return group.kind, frozenset(parts.items())


def _part(model: nn.Module, path: str, dim: int) -> tuple[object, ...]:
    """Return what a site is, whatever its widths."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    tensor = getattr(module, name)
    grouped = getattr(module, "groups", 1) != 1
    return type(module).__qualname__, name, dim, tuple(tensor.shape[2:]), grouped
