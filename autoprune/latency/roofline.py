"""Kernels and widths to milliseconds: overhead, multiply-accumulates and bytes per kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.latency.kernels import Kernel, KernelTable, fuse
from autoprune.latency.profile import DeviceProfile
from autoprune.network.ops import Affine, AffineArray, OpTable

#: Elements of one array of kernels x candidates; a few of them stay in the cache.
_CHUNK_ELEMENTS = 1 << 18

#: Families whose "channels" may be heads or tokens, which no runtime pads.
_UNPADDED = ("matmul", "copy")

_Matrix: TypeAlias = Float[np.ndarray, "kernels n"]


@runtime_checkable
class Predictor(Protocol):
    """Milliseconds of many candidates of one network.

    Attributes:
        notes: What a reader of the predictions should know, such as an extrapolation.
    """

    notes: tuple[str, ...]

    def predict(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return milliseconds for the whole batch, per candidate.

        Args:
            widths: Kept units per channel group.
            keep: Whether each removable block is kept.
        """
        ...

    def breakdown(
        self, widths: Int[np.ndarray, " groups"], keep: Bool[np.ndarray, " blocks"]
    ) -> list[tuple[str, str, float]]:
        """Return ``(path and operators, family, milliseconds)`` per kernel of one candidate."""
        ...


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What limits one kernel family.

    Attributes:
        overhead_ms: Milliseconds of one kernel however small its work.
        peak_gmacs_per_s: Attainable 10^9 multiply-accumulates per second.
        bandwidth_gb_s: Attainable 10^9 bytes per second.
    """

    overhead_ms: float
    peak_gmacs_per_s: float
    bandwidth_gb_s: float


class KernelWork:
    """Multiply-accumulates and bytes of every kernel, for many candidates at once.

    Arrays hold kernels in rows and candidates in columns, so that a row is contiguous.
    """

    def __init__(self, table: KernelTable, *, alignment: int, bytes_per_element: int) -> None:
        """Store the affine dimensions and factors of the kernels.

        Args:
            table: The kernels.
            alignment: Channels are padded to a multiple of this.
            bytes_per_element: Bytes of one tensor element.
        """
        kernels = table.kernels
        depthwise = np.array([k.groups == k.cin for k in kernels], bool)
        dims = [dim for k in kernels for dim in (k.cin, k.cout, k.groups)]
        affine = AffineArray(dims, len(table.group_sizes))
        self._coefficients = np.ascontiguousarray(affine.coefficients.T, np.float32)
        self._const = affine.const.astype(np.float32)[:, None]
        # Padded dimensions lie below the exact ones; heads and tokens are never padded.
        exact = np.array([k.family in _UNPADDED for k in kernels], bool)
        shift = np.where(exact, len(self._const), 0)
        self._cin, self._cout, self._divisor = affine.rows.reshape(-1, 3).T
        self._cin, self._cout = self._cin + shift, self._cout + shift
        # The product of a depthwise convolution, cin * cout / groups, is its output channels.
        self._single = np.flatnonzero(depthwise)
        grouped = np.array([k.groups != Affine(1) for k in kernels], bool)
        self._divided = np.flatnonzero(grouped & ~depthwise)
        self._alignment = np.float32(alignment)
        self.macs = np.array([k.macs for k in kernels])
        self.weights = np.array([k.weights for k in kernels]) * bytes_per_element
        self.reads = np.array([k.reads for k in kernels]) * bytes_per_element
        self.writes = np.array([k.writes for k in kernels]) * bytes_per_element

    def channels(self, widths: Int[np.ndarray, "n groups"]) -> tuple[_Matrix, _Matrix, _Matrix]:
        """Return padded input and output channels and ``cin * cout / groups``, kernels in rows.

        Widths are small integers, so single precision holds every dimension exactly.
        """
        distinct = self._coefficients @ widths.T.astype(np.float32) + self._const
        padded = np.ceil(distinct / self._alignment) * self._alignment
        values = np.concatenate([padded, distinct])
        cin, cout = values[self._cin], values[self._cout]
        product = cin * cout
        if len(self._single):
            product[self._single] = cout[self._single]
        if len(self._divided):
            product[self._divided] /= distinct[self._divisor[self._divided]]
        return cin, cout, product

    def dense(
        self, widths: Int[np.ndarray, "1 groups"]
    ) -> tuple[Float[np.ndarray, " kernels"], Float[np.ndarray, " kernels"]]:
        """Return multiply-accumulates and bytes per kernel of one candidate."""
        cin, cout, product = (part[:, 0].astype(float) for part in self.channels(widths))
        moved = self.reads * cin + self.writes * cout + self.weights * product
        return self.macs * product, moved


class RooflinePredictor:
    """Predicts with one :class:`Roofline` per kernel family.

    Identical kernels are computed once. Results do not depend on which candidates share a call.
    """

    def __init__(
        self,
        table: KernelTable,
        rooflines: Mapping[str, Roofline],
        *,
        alignment: int,
        bytes_per_element: int,
        overlap: Literal["none", "full"] = "none",
        constant_ms: float = 0.0,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Fold the kernels' work and the rooflines into a few factors per kernel.

        Args:
            table: The network's kernels.
            rooflines: Parameters by kernel family.
            alignment: Channels are padded to a multiple of this.
            bytes_per_element: Bytes of one tensor element.
            overlap: Whether computing and moving data overlap within a kernel.
            constant_ms: Milliseconds of a network beyond its kernels.
            notes: What a reader of the predictions should know.
        """
        self.table, self.overlap, self.constant_ms, self.notes = table, overlap, constant_ms, notes
        position: dict[tuple[object, ...], int] = {}
        self._row = [position.setdefault((k.cost, k.block), len(position)) for k in table.kernels]
        distinct: dict[int, Kernel] = dict(zip(self._row, table.kernels, strict=True))
        kernels = tuple(distinct[row] for row in range(len(distinct)))
        self._work = KernelWork(
            dataclasses.replace(table, kernels=kernels),
            alignment=alignment,
            bytes_per_element=bytes_per_element,
        )
        limits = [rooflines[kernel.family] for kernel in kernels]
        per_mac = 1e-6 / np.array([limit.peak_gmacs_per_s for limit in limits])
        per_byte = 1e-6 / np.array([limit.bandwidth_gb_s for limit in limits])
        self._overhead = _column(np.array([limit.overhead_ms for limit in limits]))
        self._compute = _column(self._work.macs * per_mac)
        self._weights = _column(self._work.weights * per_byte)
        self._both = _column(self._work.macs * per_mac + self._work.weights * per_byte)
        self._reads = _column(self._work.reads * per_byte)
        self._writes = _column(self._work.writes * per_byte)
        counts = np.bincount(np.array(self._row, np.intp), minlength=len(kernels))
        self._count = _column(counts.astype(float))
        self._repeated = bool((self._count > 1).any())
        self._block = np.array([kernel.block for kernel in kernels], np.intp)

    def predict(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return milliseconds for the whole batch, per candidate; see :class:`Predictor`."""
        parts = [
            self._count_and_sum(self._kernel_ms(widths[chunk], keep[chunk]))
            for chunk in _chunks(len(widths), len(self._block))
        ]
        return np.concatenate([np.zeros(0), *parts])

    def breakdown(
        self, widths: Int[np.ndarray, " groups"], keep: Bool[np.ndarray, " blocks"]
    ) -> list[tuple[str, str, float]]:
        """Return ``(path and operators, family, ms)`` per kernel; they add up to the prediction."""
        per_row = self._kernel_ms(widths[None], keep[None])[:, 0]
        lines = [
            (f"{kernel.path} {kernel.name}".strip(), kernel.family, float(per_row[row]))
            for kernel, row in zip(self.table.kernels, self._row, strict=True)
        ]
        return [*lines, ("(network)", "constant", self.constant_ms)]

    def _kernel_ms(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, "kernels n"]:
        cin, cout, product = self._work.channels(widths)
        cin *= self._reads
        cout *= self._writes
        cin += cout
        if self.overlap == "none":
            product *= self._both
            cin += product
        else:
            cin += product * self._weights
            product *= self._compute
            np.maximum(cin, product, out=cin)
        cin += self._overhead
        if not keep.all():
            cin *= np.concatenate([keep.T, np.ones((1, len(keep)), bool)])[self._block]
        return cin

    def _count_and_sum(self, kernel_ms: Float[np.ndarray, "kernels n"]) -> Float[np.ndarray, " n"]:
        if self._repeated:
            kernel_ms *= self._count
        # Adding whole rows in order gives every candidate the same rounding, whatever n is.
        total = np.full(kernel_ms.shape[1], self.constant_ms)
        for row in kernel_ms:
            total += row
        return total


def predictor_for(ops: OpTable, profile: DeviceProfile) -> Predictor:
    """Return the predictor of ``profile`` for a traced network.

    Its ``notes`` say where the prediction goes beyond what was measured.

    Args:
        ops: The network's operators.
        profile: The device.
    """
    table = fuse(ops, profile.runtime)
    parameters = profile.predictor
    present = dict.fromkeys(kernel.family for kernel in table.kernels)
    rooflines = {
        family: Roofline(
            overhead_ms=limit.overhead_ms,
            peak_gmacs_per_s=limit.peak_gmacs_per_s,
            bandwidth_gb_s=limit.bandwidth_gb_s,
        )
        for family in present
        for limit in (parameters.families.of(family),)
    }
    return RooflinePredictor(
        table,
        rooflines,
        alignment=profile.alignment,
        bytes_per_element=profile.bytes_per_element,
        overlap=parameters.overlap,
        constant_ms=parameters.constant_ms,
        notes=tuple(_notes(table, list(present), profile)),
    )


def _notes(table: KernelTable, families: list[str], profile: DeviceProfile) -> Iterator[str]:
    if table.batch != profile.batch:
        yield (
            f"profile {profile.name!r} was measured at batch {profile.batch}; "
            f"batch {table.batch} is extrapolated and its error is unknown"
        )
    unmeasured = [name for name in families if name not in profile.provenance.measured_families]
    if unmeasured:
        yield (
            f"no network measured for profile {profile.name!r} has {', '.join(unmeasured)} "
            f"kernels; their time is assumed from the other families"
        )


def _chunks(count: int, rows: int) -> Iterator[slice]:
    step = max(16, _CHUNK_ELEMENTS // max(1, rows))
    return (slice(start, start + step) for start in range(0, count, step))


def _column(values: Float[np.ndarray, " kernels"]) -> Float[np.ndarray, "kernels 1"]:
    return values.astype(np.float32)[:, None]
