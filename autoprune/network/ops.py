"""Compute operators with their dimensions as affine functions of channel-group widths.

Imports no torch: latency predictors and samplers work on these arrays alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

#: Operator kinds; everything a traced network computes is one of these.
KINDS = ("conv", "linear", "matmul", "norm", "pool", "pointwise", "cat", "other")


@dataclasses.dataclass(frozen=True)
class Affine:
    """``const + sum(multiplicity * width[group])``, a dimension of an operator.

    Attributes:
        const: The part no group can change.
        terms: ``(group index, multiplicity)`` pairs, sorted by group.
    """

    const: int
    terms: tuple[tuple[int, int], ...] = ()

    def at(self, widths: Sequence[int] | Int[np.ndarray, " groups"]) -> int:
        """Return the dimension for one vector of group widths.

        >>> Affine(3, ((0, 2),)).at([10])
        23
        """
        return self.const + sum(m * int(widths[group]) for group, m in self.terms)

    def without(self, sizes: Sequence[int], position: Mapping[int, int]) -> Affine:
        """Return the dimension with some groups held at full width and the others renumbered.

        Args:
            sizes: Full width of every group.
            position: New index of each group that stays variable.

        >>> Affine(3, ((0, 2), (1, 1))).without([10, 4], {1: 0})
        Affine(const=23, terms=((0, 1),))
        """
        held = sum(m * sizes[group] for group, m in self.terms if group not in position)
        kept = tuple((position[group], m) for group, m in self.terms if group in position)
        return Affine(self.const + held, kept)


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator as it ran in the traced forward pass.

    Attributes:
        kind: One of :data:`KINDS`.
        name: ATen operator such as ``"aten.convolution"``, or a layer list's own word.
        path: Module path in which it ran, ``""`` for the root.
        inputs: Indices of the ops whose outputs it reads, network inputs left out.
        cin: Input channels (for ``linear``/``matmul`` the contracted features over all ``groups``).
        cout: Output channels; equals ``cin`` for norm, pool and pointwise.
        groups: Groups of a convolution, or independent products of a batched matmul (heads).
        kernel: Kernel height and width, ``(1, 1)`` where there is none.
        stride: Stride height and width, ``(1, 1)`` where there is none.
        in_size: Input positions per image (height, width); tokens are ``(tokens, 1)``.
        out_size: Output positions per image (height, width).
        batch: Images per forward pass.
        block: Index of the removable block it belongs to, ``-1`` for none.
        transposed: Whether a convolution is transposed (kernel positions then multiply inputs).
    """

    kind: str
    name: str
    path: str
    inputs: tuple[int, ...]
    cin: Affine
    cout: Affine
    groups: Affine = Affine(1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    batch: int = 1
    block: int = -1
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class ParameterSize:
    """Shape of one parameter as a product of affine dimensions.

    Attributes:
        path: Dotted parameter name.
        dims: One :class:`Affine` per dimension.
        block: Index of the removable block that owns it, ``-1`` for none.
    """

    path: str
    dims: tuple[Affine, ...]
    block: int = -1


class AffineArray:
    """Many :class:`Affine` dimensions evaluated for many candidates as one matrix product."""

    def __init__(self, dims: Sequence[Affine], group_count: int) -> None:
        """Store the constants and coefficients of ``dims``, rows shared where dimensions repeat.

        Args:
            dims: The dimensions, in order.
            group_count: Length of a width vector.
        """
        distinct = sorted(set(dims), key=lambda dim: (dim.const, dim.terms))
        position = {dim: row for row, dim in enumerate(distinct)}
        self.rows: Int[np.ndarray, " dims"] = np.array([position[dim] for dim in dims], np.intp)
        self.const: Float[np.ndarray, " distinct"] = np.array([d.const for d in distinct], float)
        self.coefficients: Float[np.ndarray, "groups distinct"] = np.zeros(
            (group_count, len(distinct))
        )
        for row, dim in enumerate(distinct):
            for group, multiplicity in dim.terms:
                self.coefficients[group, row] += multiplicity

    def __call__(self, widths: Int[np.ndarray, "n groups"]) -> Float[np.ndarray, "n dims"]:
        """Return every dimension for every row of ``widths`` (exact integers held as floats)."""
        distinct: Float[np.ndarray, "n distinct"] = widths @ self.coefficients + self.const
        return distinct[:, self.rows]


@dataclasses.dataclass(frozen=True)
class OpTable:
    """Every operator and parameter of a traced network, ready for vectorised counting.

    Attributes:
        ops: The operators in execution order.
        parameters: Shapes of all parameters, executed or not.
        group_sizes: Full width (units) of each channel group; a width vector has this length.
        block_count: Number of removable blocks; a keep vector has this length.
    """

    ops: tuple[Op, ...]
    parameters: tuple[ParameterSize, ...]
    group_sizes: tuple[int, ...]
    block_count: int

    @property
    def full_widths(self) -> Int[np.ndarray, "1 groups"]:
        """The dense network as a width matrix of one row."""
        return np.array([self.group_sizes], np.int64).reshape(1, -1)

    @property
    def full_keep(self) -> Bool[np.ndarray, "1 blocks"]:
        """The dense network as a keep matrix of one row."""
        return np.ones((1, self.block_count), bool)

    def without(self, groups: Collection[int], blocks: Collection[int]) -> OpTable:
        """Return the table with ``groups`` held at full width and ``blocks`` always kept."""
        position = _renumbered(len(self.group_sizes), groups)
        block_position = {-1: -1} | _renumbered(self.block_count, blocks)

        def fixed(dim: Affine) -> Affine:
            return dim.without(self.group_sizes, position)

        return OpTable(
            tuple(
                dataclasses.replace(
                    op,
                    cin=fixed(op.cin),
                    cout=fixed(op.cout),
                    groups=fixed(op.groups),
                    block=block_position.get(op.block, -1),
                )
                for op in self.ops
            ),
            tuple(
                ParameterSize(p.path, tuple(map(fixed, p.dims)), block_position.get(p.block, -1))
                for p in self.parameters
            ),
            tuple(self.group_sizes[group] for group in position),
            len(block_position) - 1,
        )

    def prunable_shares(self) -> tuple[float, float]:
        """Return the shares of MACs and parameters that go when every group is cut to one unit."""
        least = np.ones_like(self.full_widths)
        macs, params = int(self.macs()[0]), int(self.params()[0])
        return (
            1 - int(self.macs(least)[0]) / macs if macs else 0.0,
            1 - int(self.params(least)[0]) / params if params else 0.0,
        )

    def macs(
        self,
        widths: Int[np.ndarray, "n groups"] | None = None,
        keep: Bool[np.ndarray, "n blocks"] | None = None,
    ) -> Int[np.ndarray, " n"]:
        """Return multiply-accumulates of convolutions, linears and matmuls per candidate.

        Equals fvcore's count of the same operators (its estimates for normalisation, pooling and
        resizing are not multiply-accumulates and are left out).

        Args:
            widths: Kept units per group; ``None`` is the dense network.
            keep: Whether each block is kept; ``None`` keeps all.
        """
        widths = self.full_widths if widths is None else widths
        keep = np.ones((len(widths), self.block_count), bool) if keep is None else keep
        cin, cout, groups, positions, block = self._mac_arrays
        per_op = cin(widths) * cout(widths) / groups(widths) * positions
        total: Int[np.ndarray, " n"] = (per_op * _alive(keep, block)).sum(axis=1).round()
        return total.astype(np.int64)

    def params(
        self,
        widths: Int[np.ndarray, "n groups"] | None = None,
        keep: Bool[np.ndarray, "n blocks"] | None = None,
    ) -> Int[np.ndarray, " n"]:
        """Return the number of parameter elements per candidate; arguments as for :meth:`macs`."""
        widths = self.full_widths if widths is None else widths
        keep = np.ones((len(widths), self.block_count), bool) if keep is None else keep
        dims, starts, block = self._parameter_arrays
        if not len(starts):
            return np.zeros(len(widths), np.int64)
        sizes = np.multiply.reduceat(dims(widths), starts, axis=1)
        total: Int[np.ndarray, " n"] = (sizes * _alive(keep, block)).sum(axis=1).round()
        return total.astype(np.int64)

    @cached_property
    def _mac_arrays(
        self,
    ) -> tuple[
        AffineArray, AffineArray, AffineArray, Float[np.ndarray, " ops"], Int[np.ndarray, " ops"]
    ]:
        ops = [op for op in self.ops if op.kind in ("conv", "linear", "matmul")]
        groups = len(self.group_sizes)
        positions = [
            op.batch
            * math.prod(op.kernel)
            * math.prod(op.in_size if op.transposed else op.out_size)
            for op in ops
        ]
        return (
            AffineArray([op.cin for op in ops], groups),
            AffineArray([op.cout for op in ops], groups),
            AffineArray([op.groups for op in ops], groups),
            np.array(positions, float),
            np.array([op.block for op in ops], np.intp),
        )

    @cached_property
    def _parameter_arrays(
        self,
    ) -> tuple[AffineArray, Int[np.ndarray, " params"], Int[np.ndarray, " params"]]:
        dims = [parameter.dims or (Affine(1),) for parameter in self.parameters]
        starts = np.cumsum([0, *(len(d) for d in dims)])[:-1]
        flat = [dim for shape in dims for dim in shape]
        block = np.array([parameter.block for parameter in self.parameters], np.intp)
        return AffineArray(flat, len(self.group_sizes)), starts.astype(np.intp), block


def _alive(
    keep: Bool[np.ndarray, "n blocks"], block: Int[np.ndarray, " items"]
) -> Bool[np.ndarray, "n items"]:
    """Return for every candidate and item whether the item's block (-1: none) is kept."""
    padded = np.concatenate([keep, np.ones((len(keep), 1), bool)], axis=1)
    alive: Bool[np.ndarray, "n items"] = padded[:, block]
    return alive


def _renumbered(count: int, removed: Collection[int]) -> dict[int, int]:
    """Return the new index of every item that is not removed."""
    return {old: new for new, old in enumerate(i for i in range(count) if i not in removed)}
