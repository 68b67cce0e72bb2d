"""From tensors to one number per unit, and from the sites of a group to one score.

A *site* is one place where a group's units live: a :class:`ParamSlice` of one parameter. A group
usually has several (the rows of every layer that writes the channel, the columns of every layer
that reads it). Sites differ in size by orders of magnitude, so each is normalised before they are
averaged; a large layer then does not drown a small one.

References:
    [Fang2023depgraph] G. Fang et al. DepGraph: Towards Any Structural Pruning. CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from autoprune.errors import PruningError, UnknownNameError
from autoprune.network.groups import ChannelGroup, ParamSlice

#: What a site's scores are divided by before sites are averaged.
NORMALISERS: Mapping[str, Callable[[Float[np.ndarray, " units"]], float]] = {
    "mean": lambda site: float(site.mean()),
    "sum": lambda site: float(site.sum()),
    "max": lambda site: float(site.max()),
    "none": lambda site: 1.0,
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


def combine(
    sites: Sequence[Float[np.ndarray, " units"]], *, normaliser: str = "mean"
) -> Float[np.ndarray, " units"]:
    """Return the mean over sites of each site's scores divided by its normaliser.

    A site of zeros only says nothing about which unit matters and stays zero.

    >>> combine([np.array([1.0, 3.0]), np.array([300.0, 100.0])])
    array([1., 1.])

    Args:
        sites: One non-negative score per unit, for each site.
        normaliser: A name in :data:`NORMALISERS`.

    Raises:
        UnknownNameError: No such normaliser.
    """
    divisor = NORMALISERS[checked_normaliser(normaliser)]
    normalised = [site / (divisor(site) or 1.0) for site in sites]
    mean: Float[np.ndarray, " units"] = np.mean(normalised, axis=0)
    return mean


def checked_normaliser(name: str) -> str:
    """Return ``name``.

    Raises:
        UnknownNameError: It is not in :data:`NORMALISERS`.
    """
    if name not in NORMALISERS:
        raise UnknownNameError("normaliser", name, NORMALISERS)
    return name


def magnitude(
    group: ChannelGroup,
    parameters: Mapping[str, Tensor],
    *,
    power: int,
    normaliser: str = "mean",
) -> Float[np.ndarray, " units"]:
    r"""Return the normalised :math:`\lVert W_c \rVert_p^p` of every unit over its weight sites.

    Args:
        group: The units.
        parameters: The model's parameters, from :func:`named_parameters`.
        power: The p of the norm; its p-th power is summed, no root is taken.
        normaliser: A name in :data:`NORMALISERS`.
    """
    sites = [
        unit_sums(widened(tensor.detach()).abs() ** power, member)
        for member, tensor in weight_sites(group, parameters)
    ]
    return combine(sites, normaliser=normaliser)
