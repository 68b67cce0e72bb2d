"""Operators and widths to bytes: weights, and activations at the moment when most are alive.

A tensor is alive from the operator that writes it to the last one that reads it, in the order in
which the network ran. Views own nothing. The network's inputs belong to the caller and are not
counted, nor are scratch buffers of a runtime.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.latency.layers import is_batch_norm, is_view
from autoprune.network.ops import AffineArray, Op, OpTable

#: Elements of one array of candidates x buffers.
_CHUNK_ELEMENTS = 1 << 21

#: Stands for a tensor of the caller.
_OUTSIDE = -1


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of many candidates.

    Attributes:
        weights: All parameters.
        activations: Activations at the moment when most are alive.
    """

    weights: Int[np.ndarray, " n"]
    activations: Int[np.ndarray, " n"]

    @property
    def total(self) -> Int[np.ndarray, " n"]:
        """Weights and activations together."""
        total: Int[np.ndarray, " n"] = self.weights + self.activations
        return total


class MemoryModel:
    """Counts the bytes of a network's candidates from its operators alone."""

    def __init__(self, ops: OpTable, *, bytes_per_element: int, reuse: bool = True) -> None:
        """Store what does not depend on the candidate.

        Args:
            ops: The network's operators.
            bytes_per_element: Bytes of one tensor element.
            reuse: Whether an elementwise operator writes over an input that nobody reads after it,
                as inference runtimes do; without, every operator has an output of its own.
        """
        self.ops, self.bytes_per_element, self.reuse = ops, bytes_per_element, reuse
        groups = len(ops.group_sizes)
        self._channels = AffineArray([op.cout for op in ops.ops], groups)
        self._positions = np.array([_positions(op) for op in ops.ops], float)
        weighted = [op for op in ops.ops if op.kind in ("conv", "linear")]
        dims = [dim for op in weighted for dim in (op.cin, op.cout, op.groups)]
        self._weight_dims = AffineArray(dims, groups)
        self._taps = np.array([math.prod(op.kernel) for op in weighted], float)

    def footprint(
        self,
        widths: Int[np.ndarray, "n groups"] | None = None,
        keep: Bool[np.ndarray, "n blocks"] | None = None,
    ) -> Footprint:
        """Return the bytes per candidate.

        Args:
            widths: Kept units per channel group; ``None`` is the dense network.
            keep: Whether each removable block is kept; ``None`` keeps all.
        """
        widths = self.ops.full_widths if widths is None else widths
        keep = np.ones((len(widths), self.ops.block_count), bool) if keep is None else keep
        return Footprint(
            weights=self._weights(widths, keep), activations=self._activations(widths, keep)
        )

    def _weights(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Int[np.ndarray, " n"]:
        """Return the bytes of the parameters; a layer list knows those of its kernels alone."""
        if self.ops.parameters:
            return self.ops.params(widths, keep) * self.bytes_per_element
        cin, cout, groups = self._weight_dims(widths).reshape(len(widths), -1, 3).transpose(2, 0, 1)
        elements: Int[np.ndarray, " n"] = ((cin * cout / groups) @ self._taps).round()
        return elements.astype(np.int64) * self.bytes_per_element

    def _activations(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Int[np.ndarray, " n"]:
        peaks = np.zeros(len(widths))
        patterns, pattern = np.unique(keep, axis=0, return_inverse=True)
        for number, kept in enumerate(patterns):
            buffers = self._buffers(kept)
            rows = np.flatnonzero(pattern.ravel() == number)
            for some in _chunks(rows, len(self.ops.ops)):
                peaks[some] = self._peak(widths[some], *buffers)
        return peaks.astype(np.int64) * self.bytes_per_element

    def _peak(
        self,
        widths: Int[np.ndarray, "n groups"],
        written: Int[np.ndarray, " buffers"],
        read: Int[np.ndarray, " buffers"],
    ) -> Float[np.ndarray, " n"]:
        """Return the most elements alive at once, given when buffers are written and last read."""
        if not len(written):
            return np.zeros(len(widths))
        elements = (self._channels(widths) * self._positions)[:, written]
        by_end = np.argsort(read, kind="stable")
        freed = np.zeros((len(widths), len(read) + 1))
        np.cumsum(elements[:, by_end], axis=1, out=freed[:, 1:])
        # Memory is highest when something is written: all written so far, less what was freed.
        gone = np.searchsorted(read[by_end], written, side="left")
        live = np.cumsum(elements, axis=1) - freed[:, gone]
        peak: Float[np.ndarray, " n"] = live.max(axis=1)
        return peak

    def _buffers(
        self, kept: Bool[np.ndarray, " blocks"]
    ) -> tuple[Int[np.ndarray, " buffers"], Int[np.ndarray, " buffers"]]:
        """Return for every buffer the operators that write it and that read it last."""
        ops = self.ops.ops
        runs = [op.block < 0 or bool(kept[op.block]) for op in ops]
        value: list[int] = []  # per operator: whose output its own is
        for index, op in enumerate(ops):
            owns = runs[index] and not is_view(op)
            value.append(index if owns else self._source(op, value))
        last = self._last_reads(value, runs)
        written: list[int] = []
        read: list[int] = []
        home: dict[int, int] = {}  # operator -> its buffer
        for index, op in enumerate(ops):
            if value[index] != index:
                continue
            over = self._overwritten(index, op, value, last) if self.reuse else _OUTSIDE
            if over == _OUTSIDE:
                home[index] = len(written)
                written.append(index)
                read.append(last[index])
            else:
                home[index] = home[over]
                read[home[over]] = last[index]
        return np.array(written, np.intp), np.array(read, np.intp)

    def _source(self, op: Op, value: Sequence[int]) -> int:
        """Return whose output a view shows, or what stands in for that of a removed block."""
        ops = self.ops.ops
        alike = (i for i in op.inputs if value[i] != _OUTSIDE and _same_form(ops[value[i]], op))
        first = next(alike, op.inputs[0] if op.inputs else None)
        return _OUTSIDE if first is None else value[first]

    def _last_reads(self, value: Sequence[int], runs: Sequence[bool]) -> list[int]:
        """Return the last operator that reads each output; what nobody reads lives to the end."""
        end = len(self.ops.ops)
        last = [_OUTSIDE] * end
        for index, op in enumerate(self.ops.ops):
            if runs[index] and value[index] == index:
                for producer in op.inputs:
                    if value[producer] != _OUTSIDE:
                        last[value[producer]] = index
        return [end if reader == _OUTSIDE else reader for reader in last]

    def _overwritten(self, index: int, op: Op, value: Sequence[int], last: Sequence[int]) -> int:
        """Return the operator whose output an elementwise one writes its own over."""
        if op.kind != "pointwise" and not is_batch_norm(op):
            return _OUTSIDE
        for producer in op.inputs:
            source = value[producer]
            if (
                source != _OUTSIDE
                and last[source] == index
                and _same_form(self.ops.ops[source], op)
            ):
                return source
        return _OUTSIDE


def _positions(op: Op) -> int:
    """Return output positions of the whole batch."""
    return op.batch * math.prod(op.out_size)


def _same_form(left: Op, right: Op) -> bool:
    """Return whether the outputs of two operators have equally many elements, whatever is cut."""
    return left.cout == right.cout and _positions(left) == _positions(right)


def _chunks(rows: Int[np.ndarray, " rows"], columns: int) -> Iterator[Int[np.ndarray, " some"]]:
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    return (rows[start : start + step] for start in range(0, len(rows), step))
