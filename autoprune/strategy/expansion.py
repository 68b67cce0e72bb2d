"""What belongs to the network's groups, in terms of a search space that ties some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.network.ops import Affine, OpTable
from autoprune.strategy.problem import Latency
from autoprune.strategy.space import SearchSpace


@dataclasses.dataclass(frozen=True)
class NetworkLatency:
    """The latency of a network whose groups are tied in a search space.

    Attributes:
        space: The search space.
        network: Kept units of the network's groups and kept blocks to ms.
    """

    space: SearchSpace
    network: Latency

    def __call__(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return milliseconds for widths of the space's dimensions."""
        return self.network(self.space.network_widths(widths), keep)


def space_latency(space: SearchSpace, network: Latency) -> Latency:
    """Return the latency of candidates from that of the network."""
    return NetworkLatency(space, network) if space.members else network


def space_ops(space: SearchSpace, ops: OpTable) -> OpTable:
    """Return the network's operators with dimensions that follow those of the space."""
    if not space.members:
        return ops
    place = {
        member.index: (dim, member.units)
        for dim, members in enumerate(space.parts)
        for member in members
    }

    def followed(affine: Affine) -> Affine:
        terms: dict[int, int] = {}
        for group, multiplicity in affine.terms:
            dim, units = place[group]
            terms[dim] = terms.get(dim, 0) + multiplicity * units
        return Affine(affine.const, tuple(sorted(terms.items())))

    return dataclasses.replace(
        ops,
        ops=tuple(
            dataclasses.replace(
                op, cin=followed(op.cin), cout=followed(op.cout), groups=followed(op.groups)
            )
            for op in ops.ops
        ),
        parameters=tuple(
            dataclasses.replace(size, dims=tuple(map(followed, size.dims)))
            for size in ops.parameters
        ),
        group_sizes=tuple(dim.size for dim in space.dimensions),
    )


def space_scores(
    space: SearchSpace, scores: Mapping[str, Float[np.ndarray, " _"]]
) -> dict[str, Float[np.ndarray, " _"]]:
    """Return scores of the network's groups, and beside them those of ties by their names.

    A unit of a tie is as many units of each of its groups as go together, the least important ones
    first; its score is the sum of theirs.
    """
    found = dict(scores)
    for dim, members in zip(space.dimensions, space.parts, strict=True):
        if len(members) > 1:
            ranked = [np.sort(scores[m.group]).reshape(dim.size, m.units) for m in members]
            found[dim.group] = np.sum([rows.sum(axis=1) for rows in ranked], axis=0)
    return found
