"""The vectorised counts against a loop over the same ops."""

from __future__ import annotations

import math

import numpy as np

from autoprune.network.ops import Affine, AffineArray, Op, OpTable, ParameterSize


def _table() -> OpTable:
    ops = (
        Op("conv", "aten.convolution", "a", (), Affine(3), Affine(0, ((0, 1),)), kernel=(3, 3),
           out_size=(8, 8), batch=2),
        Op("conv", "aten.convolution", "b", (0,), Affine(0, ((0, 1),)), Affine(0, ((0, 1),)),
           groups=Affine(0, ((0, 1),)), kernel=(3, 3), out_size=(4, 4), batch=2, block=0),
        Op("norm", "aten.native_batch_norm", "n", (1,), Affine(0, ((0, 1),)), Affine(0, ((0, 1),))),
        Op("linear", "aten.addmm", "c", (2,), Affine(4, ((0, 2), (1, 1))), Affine(10), batch=2),
    )  # fmt: skip
    parameters = (
        ParameterSize("a.weight", (Affine(0, ((0, 1),)), Affine(3), Affine(3), Affine(3))),
        ParameterSize("b.weight", (Affine(0, ((0, 1),)), Affine(1), Affine(3), Affine(3)), 0),
        ParameterSize("scale", ()),
    )
    return OpTable(ops, parameters, (6, 5), 1)


def test_macs_and_params_equal_a_loop() -> None:
    table, rng = _table(), np.random.default_rng(0)
    widths = np.stack([rng.integers(1, size + 1, 50) for size in table.group_sizes], axis=1)
    keep = rng.random((50, 1)) < 0.5
    for row, kept, macs, params in zip(
        widths, keep, table.macs(widths, keep), table.params(widths, keep), strict=True
    ):
        want = sum(
            op.batch * math.prod(op.kernel) * math.prod(op.out_size)
            * op.cin.at(row) * op.cout.at(row) // op.groups.at(row)
            for op in table.ops
            if op.kind in ("conv", "linear") and (op.block < 0 or kept[op.block])
        )  # fmt: skip
        assert macs == want
        assert params == sum(
            math.prod(dim.at(row) for dim in p.dims)
            for p in table.parameters
            if p.block < 0 or kept[p.block]
        )


def test_freezing_a_group_keeps_the_dense_counts_and_renumbers() -> None:
    table = _table()
    fixed = table.without({0}, {0})
    assert fixed.group_sizes == (5,)
    assert fixed.block_count == 0
    assert fixed.macs() == table.macs()
    assert fixed.params() == table.params()
    widths = np.array([[6, 2]])
    assert fixed.macs(widths[:, 1:])[0] == table.macs(widths)[0]


def test_affine_array_repeats_rows_for_equal_dimensions() -> None:
    dims = [Affine(1, ((0, 2),)), Affine(7), Affine(1, ((0, 2),))]
    array = AffineArray(dims, 1)
    assert len(array.const) == 2
    assert array(np.array([[3], [4]])).tolist() == [[7, 7, 7], [9, 7, 9]]
