"""From tensors to one number per unit, and from the sites of a group to one score.

A *site* is one place where a group's units live: a :class:`ParamSlice` of one parameter. A group
usually has several (the rows of every layer that writes the channel, the columns of every layer
that reads it). Sites differ in size by orders of magnitude, so each is normalised before they are
averaged; a large layer then does not drown a small one.

References:
    [Fang2023depgraph] G. Fang et al. DepGraph: Towards Any Structural Pruning. CVPR 2023.

    [Lee2021lamp] J. Lee et al. Layer-adaptive Sparsity for the Magnitude-based Pruning. ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from autoprune.errors import PruningError, UnknownNameError
from autoprune.network.groups import ChannelGroup, ParamSlice

#: One number per unit.
Scores = Float[np.ndarray, " units"]


def _divided(divisor: Callable[[Scores], float]) -> Callable[[Scores], Scores]:
    """Return a function that divides scores by a number made of them; zeros stay zeros."""
    return lambda scores: scores / (divisor(scores) or 1.0)


def _lamp(scores: Scores) -> Scores:
    """Return each score over the sum of all that are no smaller [Lee2021lamp]; zeros stay zeros."""
    ascending = np.sort(scores)
    no_smaller = np.cumsum(ascending[::-1])[::-1]
    total = no_smaller[np.searchsorted(ascending, scores)]
    lamp: Scores = scores / np.where(total == 0, 1.0, total)
    return lamp


#: How the scores of a site, or of a group, become comparable with those of another.
NORMALISERS: Mapping[str, Callable[[Scores], Scores]] = {
    "mean": _divided(lambda scores: float(scores.mean())),
    "sum": _divided(lambda scores: float(scores.sum())),
    "max": _divided(lambda scores: float(scores.max())),
    "norm": _divided(lambda scores: float(np.linalg.norm(scores))),
    "sentinel": _divided(lambda scores: float(np.sort(scores)[len(scores) // 2])),
    "standardise": lambda scores: _divided(lambda s: float(s.max()))(scores - scores.min()),
    "gaussian": lambda scores: _divided(lambda s: float(s.std()))(scores - scores.mean()),
    "lamp": _lamp,
    "none": lambda scores: scores,
}

#: How the scores of a group's sites, ``[sites, units]`` in the order of its members, become one.
REDUCERS: Mapping[str, Callable[[Float[np.ndarray, "sites units"]], Scores]] = {
    "mean": lambda sites: sites.mean(0),
    "sum": lambda sites: sites.sum(0),
    "max": lambda sites: sites.max(0),
    "prod": lambda sites: sites.prod(0),
    "first": lambda sites: sites[0],
    "gate": lambda sites: sites[-1],
}


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter of ``model`` by name, a tied one under each of its names."""
    return dict(model.named_parameters(remove_duplicate=False))


def parameter_sites(
    group: ChannelGroup, parameters: Mapping[str, Tensor]
) -> list[tuple[ParamSlice, Tensor]]:
    """Return the group's sites that are parameters, each with its tensor.

    Buffers such as running statistics are left out: they describe data, not weights.

    Raises:
        PruningError: The group has no such site.
    """
    sites = [
        (member, parameters[member.path]) for member in group.members if member.path in parameters
    ]
    if not sites:
        raise PruningError(
            f"group {group.name!r} should cut at least one parameter of the model, but has only "
            f"{sorted(member.path for member in group.members)}; trace the model again"
        )
    return sites


def weight_sites(
    group: ChannelGroup, parameters: Mapping[str, Tensor]
) -> list[tuple[ParamSlice, Tensor]]:
    """Return the group's sites that are weights: parameters of two or more dimensions.

    Biases and the affine parameters of normalisations are vectors and do not count. The units of a
    group that touches vectors alone have no other parameters, so there the vectors are its sites.
    """
    sites = parameter_sites(group, parameters)
    return [(member, tensor) for member, tensor in sites if tensor.ndim > 1] or sites


def unit_sums(values: Shaped[Tensor, "..."], member: ParamSlice) -> Float[np.ndarray, " units"]:
    """Return the sum over all entries of ``values`` that each unit occupies.

    Args:
        values: A tensor of the shape of the parameter that ``member`` cuts.
        member: Where the units are; a unit of several positions (flatten, grouped convolution)
            gets the sum over all of them.
    """
    others = [dim for dim in range(values.ndim) if dim != member.dim]
    values = widened(values.detach())
    positions = (values.sum(others) if others else values).cpu().numpy().astype(np.float64)
    sums: Float[np.ndarray, " units"] = positions[member.indices].sum(axis=1)
    return sums


def widened(values: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return ``values`` in at least single precision, in which squares and sums are safe."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit_rows(values: Shaped[Tensor, "..."], member: ParamSlice) -> Float[Tensor, "units entries"]:
    """Return all entries of ``values`` that each unit occupies, one row per unit.

    Args:
        values: A tensor of the shape of the parameter that ``member`` cuts.
        member: Where the units are.
    """
    places = torch.from_numpy(member.indices).flatten().to(values.device)
    rows = widened(values.detach()).movedim(member.dim, 0)[places]
    return rows.reshape(len(member.indices), -1)


def combine(
    sites: Sequence[Float[np.ndarray, " units"]], *, normaliser: str = "mean", reduce: str = "mean"
) -> Float[np.ndarray, " units"]:
    """Return one score per unit from those of each site: normalised, then reduced over sites.

    A site of zeros only says nothing about which unit matters and stays zero. The other order,
    over sites first and over units then, is ``normalised(combine(sites, normaliser="none"), name)``

    >>> combine([np.array([1.0, 3.0]), np.array([300.0, 100.0])])
    array([1., 1.])

    Args:
        sites: One score per unit, for each site.
        normaliser: A name in :data:`NORMALISERS`.
        reduce: A name in :data:`REDUCERS`.

    Raises:
        UnknownNameError: No such normaliser, or no such reducer.
    """
    scaled = [normalised(site, normaliser) for site in sites]
    return REDUCERS[checked_reducer(reduce)](np.stack(scaled))


def normalised(scores: Float[np.ndarray, " units"], name: str) -> Float[np.ndarray, " units"]:
    """Return the scores of the units of one site or group on a scale that others share.

    For scores :math:`s` of one sign:

    * ``mean``, ``sum``, ``max``, ``norm``: over the mean, sum, maximum or Euclidean norm.
    * ``sentinel``: over the score in the middle of the ascending order.
    * ``standardise``: ``(s - min) / (max - min)``.
    * ``gaussian``: ``(s - mean) / std``, population standard deviation; about half are negative.
    * ``lamp``: each over the sum of all that are no smaller.
    * ``none``: as they are.

    Where the divisor is zero, it is taken as one.

    Args:
        scores: One per unit.
        name: A name in :data:`NORMALISERS`.

    Raises:
        UnknownNameError: No such normaliser.
    """
    return NORMALISERS[checked_normaliser(name)](scores)


def checked_normaliser(name: str) -> str:
    """Return ``name``.

    Raises:
        UnknownNameError: It is not in :data:`NORMALISERS`.
    """
    if name not in NORMALISERS:
        raise UnknownNameError("normaliser", name, NORMALISERS)
    return name


def checked_reducer(name: str) -> str:
    """Return ``name``.

    Raises:
        UnknownNameError: It is not in :data:`REDUCERS`.
    """
    if name not in REDUCERS:
        raise UnknownNameError("reducer", name, REDUCERS)
    return name


def magnitude(
    group: ChannelGroup,
    parameters: Mapping[str, Tensor],
    *,
    power: int,
    normaliser: str = "mean",
    reduce: str = "mean",
) -> Float[np.ndarray, " units"]:
    r"""Return the normalised :math:`\lVert W_c \rVert_p^p` of every unit over its weight sites.

    Args:
        group: The units.
        parameters: The model's parameters, from :func:`named_parameters`.
        power: The p of the norm; its p-th power is summed, no root is taken.
        normaliser: A name in :data:`NORMALISERS`.
        reduce: A name in :data:`REDUCERS`.
    """
    sites = [
        unit_sums(widened(tensor.detach()).abs() ** power, member)
        for member, tensor in weight_sites(group, parameters)
    ]
    return combine(sites, normaliser=normaliser, reduce=reduce)
