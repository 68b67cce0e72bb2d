"""Measured latencies as arrays: kernels in rows, each of them part of one measured sample.

A sample is a whole network or a single kernel; fitting treats both alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.latency.kernels import FAMILIES, KernelTable

#: Columns of :class:`Shapes`; see :class:`autoprune.latency.kernels.Kernel` and its window.
COLUMNS = (
    *("cin", "cout", "groups", "macs", "weights", "reads", "writes"),
    *("taps", "stride", "inputs", "outputs", "batch"),
)
#: Families whose "channels" may be heads or tokens, which no runtime pads.
UNPADDED = ("matmul", "copy")


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Many kernels with whole-number channels.

    Attributes:
        family: Index into :data:`~autoprune.latency.kernels.FAMILIES`, per kernel.
        values: One column per name in :data:`COLUMNS`.
    """

    family: Int[np.ndarray, " kernels"]
    values: Float[np.ndarray, "kernels columns"]

    def __len__(self) -> int:
        return len(self.family)

    def __getitem__(self, column: str) -> Float[np.ndarray, " kernels"]:
        return self.values[:, COLUMNS.index(column)]

    def take(self, rows: Int[np.ndarray, " rows"] | Bool[np.ndarray, " kernels"]) -> Shapes:
        """Return some of the kernels."""
        return Shapes(self.family[rows], self.values[rows])

    def work(
        self, paddings: Float[np.ndarray, "families 2"], bytes_per_element: int
    ) -> tuple[Float[np.ndarray, " kernels"], Float[np.ndarray, " kernels"]]:
        """Return multiply-accumulates and bytes per kernel.

        Args:
            paddings: Multiples that input and output channels are padded to, by kernel family.
            bytes_per_element: Bytes of one tensor element.
        """
        padding = np.where(_IS_UNPADDED[self.family, None], 1.0, paddings[self.family]).T
        cin, cout = (
            np.ceil(self[side] / multiple) * multiple
            for side, multiple in zip(("cin", "cout"), padding, strict=True)
        )
        depthwise = self["groups"] == self["cin"]
        product = np.where(depthwise, cout, cin * cout / self["groups"])
        moved = self["reads"] * cin + self["writes"] * cout + self["weights"] * product
        return self["macs"] * product, moved * bytes_per_element


#: No padding of any family, for :meth:`Shapes.work`.
EXACT = np.ones((len(FAMILIES), 2))
_IS_UNPADDED = np.array([family in UNPADDED for family in FAMILIES])


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a row was published.

    Attributes:
        repository: ``owner/name`` or an address.
        file: Path inside the repository.
        runtime: Runtime as the table names it.
        fusion: Fusion rules of its rows, see :data:`autoprune.latency.kernels.RUNTIMES`.
        commit: The commit that was read, ``""`` where the table does not say.
        licence: SPDX name of its licence, ``""`` where the table does not say.
    """

    repository: str
    file: str
    runtime: str
    fusion: str
    commit: str = ""
    licence: str = ""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One whole-network row of a table with its kernels.

    Attributes:
        network: Name in the table.
        origin: Where it was published; rows of one origin share their way of measuring.
        latency_ms: Milliseconds for the whole batch.
        kernels: What the runtime launches.
    """

    network: str
    origin: Origin
    latency_ms: float
    kernels: KernelTable


@dataclasses.dataclass(frozen=True)
class Samples:
    """Measured networks and kernels.

    Attributes:
        shapes: The kernels of all samples.
        sample: The sample each kernel belongs to, ascending.
        latency_ms: Milliseconds per sample, for the whole batch.
        origin: Index into ``origins``, per sample.
        origins: Where samples were published.
        whole: Whether a sample is a network (which has a constant beyond its kernels).
        names: What each sample is called in messages.
        groups: What each sample is held out with.
    """

    shapes: Shapes
    sample: Int[np.ndarray, " kernels"]
    latency_ms: Float[np.ndarray, " samples"]
    origin: Int[np.ndarray, " samples"]
    origins: tuple[Origin, ...]
    whole: Bool[np.ndarray, " samples"]
    names: tuple[str, ...]
    groups: tuple[Hashable, ...]

    def __len__(self) -> int:
        return len(self.latency_ms)

    @property
    def families(self) -> list[str]:
        """Kernel families that occur, in the order of :data:`FAMILIES`."""
        present = np.bincount(self.shapes.family, minlength=len(FAMILIES)) > 0
        return [family for family, found in zip(FAMILIES, present, strict=True) if found]

    def take(self, kept: Bool[np.ndarray, " samples"]) -> Samples:
        """Return the samples that are kept; origins keep their numbers."""
        rows = kept[self.sample]
        number = np.cumsum(kept) - 1
        chosen = np.flatnonzero(kept)
        return Samples(
            self.shapes.take(rows),
            number[self.sample[rows]],
            self.latency_ms[kept],
            self.origin[kept],
            self.origins,
            self.whole[kept],
            tuple(self.names[i] for i in chosen),
            tuple(self.groups[i] for i in chosen),
        )


def shapes_of(table: KernelTable) -> Shapes:
    """Return the kernels of a network at its full widths."""
    rows = [
        (
            *(dim.at(table.group_sizes) for dim in (kernel.cin, kernel.cout, kernel.groups)),
            *(kernel.macs, kernel.weights, kernel.reads, kernel.writes),
            *dataclasses.astuple(kernel.window),
        )
        for kernel in table.kernels
    ]
    family = np.array([FAMILIES.index(kernel.family) for kernel in table.kernels], np.intp)
    return Shapes(family, np.array(rows, float).reshape(-1, len(COLUMNS)))


def network_samples(measurements: Sequence[Measurement]) -> Samples:
    """Return measured networks; those that fuse to identical kernels are one group."""
    origins = tuple(dict.fromkeys(m.origin for m in measurements))
    made: dict[int, Shapes] = {}
    for measurement in measurements:
        made.setdefault(id(measurement.kernels), shapes_of(measurement.kernels))
    parts = [made[id(m.kernels)] for m in measurements]
    return Samples(
        concatenated(parts),
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        np.array([m.latency_ms for m in measurements], float),
        np.array([origins.index(m.origin) for m in measurements], np.intp),
        origins,
        np.ones(len(measurements), bool),
        tuple(m.network for m in measurements),
        tuple(_signature(part) for part in parts),
    )


def joined(parts: Sequence[Samples]) -> Samples:
    """Return the samples of all parts in order."""
    origins = tuple(dict.fromkeys(origin for part in parts for origin in part.origins))
    starts = np.cumsum([0, *(len(part) for part in parts)])
    renumbered = [
        np.array([origins.index(o) for o in part.origins], np.intp)[part.origin] for part in parts
    ]
    return Samples(
        concatenated([part.shapes for part in parts]),
        np.concatenate([part.sample + start for part, start in zip(parts, starts, strict=False)]),
        np.concatenate([part.latency_ms for part in parts]),
        np.concatenate(renumbered),
        origins,
        np.concatenate([part.whole for part in parts]),
        tuple(name for part in parts for name in part.names),
        tuple(group for part in parts for group in part.groups),
    )


def concatenated(parts: Sequence[Shapes]) -> Shapes:
    """Return the kernels of all parts in order."""
    none = Shapes(np.zeros(0, np.intp), np.zeros((0, len(COLUMNS))))
    together = [none, *parts]
    return Shapes(
        np.concatenate([part.family for part in together]),
        np.concatenate([part.values for part in together]),
    )


def _signature(shapes: Shapes) -> bytes:
    """Return the kernels in canonical order, equal for networks that fuse to the same work."""
    rows = np.column_stack([shapes.family, shapes.values])
    return rows[np.lexsort(rows.T)].tobytes()
