"""Kernels and widths to milliseconds: overhead, multiply-accumulates and bytes per kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.latency.kernels import FAMILIES, Kernel, KernelTable
from autoprune.latency.samples import UNPADDED, Shapes
from autoprune.network.ops import Affine, AffineArray

#: Elements of one array of kernels x candidates; a few of them stay in the cache.
_CHUNK_ELEMENTS = 1 << 18

#: Bits of one dimension in a code for the channels of a kernel.
_BITS = 21

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
        alignment: Channels are padded to a multiple of this.
        tile: Output channels are padded to a multiple of this; by default to the alignment.
    """

    overhead_ms: float
    peak_gmacs_per_s: float
    bandwidth_gb_s: float
    alignment: int = 1
    tile: int | None = None

    @property
    def paddings(self) -> tuple[int, int]:
        """Multiples that input and output channels are padded to."""
        return self.alignment, self.tile or self.alignment

    def scaled(self, factor: float) -> Roofline:
        """Return the roofline of a device that takes ``factor`` times as long for everything."""
        return dataclasses.replace(
            self,
            overhead_ms=self.overhead_ms * factor,
            peak_gmacs_per_s=self.peak_gmacs_per_s / factor,
            bandwidth_gb_s=self.bandwidth_gb_s / factor,
        )


@runtime_checkable
@runtime_checkable
class Correction(Protocol):
    """What measurements of kernels add to a roofline."""

    def log_factor(self, shapes: Shapes) -> Float[np.ndarray, " kernels"]:
        """Return the logarithm of measured over roofline latency; 0 where nothing is known."""
        ...


class KernelWork:
    """Multiply-accumulates and bytes of every kernel, for many candidates at once.

    Arrays hold kernels in rows and candidates in columns, so that a row is contiguous.
    """

    def __init__(
        self,
        table: KernelTable,
        *,
        paddings: Sequence[tuple[int, int]],
        bytes_per_element: int,
    ) -> None:
        """Store the affine dimensions and factors of the kernels.

        Args:
            table: The kernels.
            paddings: Multiples that input and output channels of each kernel are padded to; heads
                and tokens never are.
            bytes_per_element: Bytes of one tensor element.
        """
        kernels = table.kernels
        depthwise = np.array([k.groups == k.cin for k in kernels], bool)
        dims = [dim for k in kernels for dim in (k.cin, k.cout, k.groups)]
        affine = AffineArray(dims, len(table.group_sizes))
        self._coefficients = np.ascontiguousarray(affine.coefficients.T, np.float32)
        self._const = affine.const.astype(np.float32)[:, None]
        both = [
            (1, 1) if k.family in UNPADDED else pair
            for k, pair in zip(kernels, paddings, strict=True)
        ]
        # Below the exact dimensions lies one copy of them per multiple they are padded to.
        self._paddings = sorted({multiple for pair in both for multiple in pair} - {1})
        place = {1: 0} | {a: i for i, a in enumerate(self._paddings, 1)}
        shifts = np.array([[place[a] for a in pair] for pair in both], np.intp).reshape(-1, 2)
        self._exact = affine.rows.reshape(-1, 3).T
        self._cin, self._cout = self._exact[:2] + shifts.T * len(self._const)
        # The product of a depthwise convolution, cin * cout / groups, is its output channels.
        self._single = np.flatnonzero(depthwise)
        grouped = np.array([k.groups != Affine(1) for k in kernels], bool)
        self._divided = np.flatnonzero(grouped & ~depthwise)
        self.macs = np.array([k.macs for k in kernels])
        self.weights = np.array([k.weights for k in kernels]) * bytes_per_element
        self.reads = np.array([k.reads for k in kernels]) * bytes_per_element
        self.writes = np.array([k.writes for k in kernels]) * bytes_per_element

    def channels(self, widths: Int[np.ndarray, "n groups"]) -> tuple[_Matrix, _Matrix, _Matrix]:
        """Return padded input and output channels and ``cin * cout / groups``, kernels in rows.

        Widths are small integers, so single precision holds every dimension exactly.
        """
        exact = self._distinct(widths)
        padded = [np.ceil(exact / np.float32(a)) * np.float32(a) for a in self._paddings]
        values = np.concatenate([exact, *padded]) if padded else exact
        cin, cout = values[self._cin], values[self._cout]
        product = cin * cout
        if len(self._single):
            product[self._single] = cout[self._single]
        if len(self._divided):
            product[self._divided] /= exact[self._exact[2, self._divided]]
        return cin, cout, product

    def exact(self, widths: Int[np.ndarray, "n groups"]) -> Int[np.ndarray, "3 kernels n"]:
        """Return input channels, output channels and groups as they are, kernels in rows."""
        dims: Int[np.ndarray, "3 kernels n"] = self._distinct(widths).astype(np.int64)[self._exact]
        return dims

    def _distinct(self, widths: Int[np.ndarray, "n groups"]) -> Float[np.ndarray, "distinct n"]:
        product: Float[np.ndarray, "distinct n"] = (
            self._coefficients @ widths.T.astype(np.float32) + self._const
        )
        return product


class _Factors:
    """Corrections of all kernels, each computed once for every set of channels it is asked for."""

    def __init__(self, kernels: Sequence[Kernel], correction: Correction) -> None:
        forms = [
            (k.family, k.macs, k.weights, k.reads, k.writes, *dataclasses.astuple(k.window))
            for k in kernels
        ]
        self._distinct = list(dict.fromkeys(forms))
        # Kernels that differ in their channels alone share what is known.
        self._form = [self._distinct.index(form) for form in forms]
        self._correction = correction
        self._codes = [np.zeros(0, np.int64) for _ in self._distinct]
        self._values = [np.zeros(0, np.float32) for _ in self._distinct]

    def apply(
        self, kernel_ms: Float[np.ndarray, "kernels n"], dims: Int[np.ndarray, "3 kernels n"]
    ) -> None:
        """Multiply latencies by the corrections of their kernels, in place."""
        for row, form in enumerate(self._form):
            kernel_ms[row] *= self._of(form, dims[:, row])

    def _of(self, form: int, dims: Int[np.ndarray, "3 n"]) -> Float[np.ndarray, " n"]:
        code = (dims[0] << _BITS | dims[1]) << _BITS | dims[2]
        place = np.searchsorted(self._codes[form], code)
        found = np.zeros(len(code), bool)
        if len(self._codes[form]):
            found = self._codes[form][np.minimum(place, len(self._codes[form]) - 1)] == code
        if not found.all():
            self._learn(form, np.unique(code[~found]))
            place = np.searchsorted(self._codes[form], code)
        values: Float[np.ndarray, " n"] = self._values[form][place]
        return values

    def _learn(self, form: int, codes: Int[np.ndarray, " new"]) -> None:
        family, macs, weights, reads, writes, *window = self._distinct[form]
        mask = (1 << _BITS) - 1
        columns = [codes >> 2 * _BITS, codes >> _BITS & mask, codes & mask]
        fixed = [np.full(len(codes), value) for value in (macs, weights, reads, writes, *window)]
        family_index = np.full(len(codes), FAMILIES.index(family), np.intp)
        shapes = Shapes(family_index, np.column_stack([*columns, *fixed]).astype(float))
        new = np.exp(self._correction.log_factor(shapes)).astype(np.float32)
        together = np.concatenate([self._codes[form], codes])
        order = np.argsort(together)
        self._codes[form] = together[order]
        self._values[form] = np.concatenate([self._values[form], new])[order]


class RooflinePredictor:
    """Predicts with one :class:`Roofline` per kernel family, corrected where kernels were measured.

    Identical kernels are computed once. Results do not depend on which candidates share a call.
    """

    def __init__(
        self,
        table: KernelTable,
        rooflines: Mapping[str, Roofline],
        *,
        bytes_per_element: int,
        overlap: Literal["none", "full"] = "none",
        constant_ms: float = 0.0,
        correction: Correction | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Fold the kernels' work and the rooflines into a few factors per kernel.

        Args:
            table: The network's kernels.
            rooflines: Parameters by kernel family.
            bytes_per_element: Bytes of one tensor element.
            overlap: Whether computing and moving data overlap within a kernel.
            constant_ms: Milliseconds of a network beyond its kernels.
            correction: What measured kernels add to the rooflines.
            notes: What a reader of the predictions should know.
        """
        self.table, self.overlap, self.constant_ms, self.notes = table, overlap, constant_ms, notes
        position: dict[tuple[object, ...], int] = {}
        self._row = [position.setdefault((k.cost, k.block), len(position)) for k in table.kernels]
        distinct: dict[int, Kernel] = dict(zip(self._row, table.kernels, strict=True))
        kernels = tuple(distinct[row] for row in range(len(distinct)))
        limits = [rooflines[kernel.family] for kernel in kernels]
        self._work = KernelWork(
            dataclasses.replace(table, kernels=kernels),
            paddings=[limit.paddings for limit in limits],
            bytes_per_element=bytes_per_element,
        )
        self._factors = _Factors(kernels, correction) if correction is not None else None
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
        if self._factors is not None:
            self._factors.apply(cin, self._work.exact(widths))
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


def _chunks(count: int, rows: int) -> Iterator[slice]:
    step = max(16, _CHUNK_ELEMENTS // max(1, rows))
    return (slice(start, start + step) for start in range(0, count, step))


def _column(values: Float[np.ndarray, " kernels"]) -> Float[np.ndarray, "kernels 1"]:
    return values.astype(np.float32)[:, None]
