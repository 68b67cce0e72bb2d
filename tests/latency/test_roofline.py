import dataclasses
import math

import numpy as np
import pytest

from autoprune.latency.kernels import FAMILIES, fuse
from autoprune.latency.predict import predictor_for
from autoprune.latency.roofline import KernelWork, Roofline, RooflinePredictor
from autoprune.latency.samples import Shapes
from autoprune.network.ops import Affine, Op, OpTable
from autoprune.testing.profiles import made_up_profile

SIZES = (24, 40, 64, 6)


def width(group, multiplicity=1, const=0):
    return Affine(const, ((group, multiplicity),))


def op_table(batch=1):
    """A network with every kernel family, two equal kernels and two removable blocks."""
    image = {"in_size": (8, 8), "out_size": (8, 8), "batch": batch}
    a, b, c, heads = (width(g) for g in range(4))
    head, scores = width(3, 4), width(3, 9)
    ops = (
        Op("conv", "conv", "stem", (), Affine(3), a, kernel=(3, 3), **image),
        Op("conv", "conv", "one", (0,), a, b, kernel=(3, 3), block=0, **image),
        Op("conv", "conv", "two", (1,), b, a, kernel=(3, 3), block=0, **image),
        Op("pointwise", "add", "two", (2, 0), a, a, block=0, **image),
        Op("conv", "conv", "twin", (3,), a, b, kernel=(3, 3), **image),
        Op("conv", "conv", "twin again", (3,), a, b, kernel=(3, 3), **image),
        Op("conv", "dwconv", "depth", (5,), b, b, b, kernel=(5, 5), block=1, **image),
        Op("conv", "gconv", "grouped", (6,), head, head, heads, kernel=(3, 3), **image),
        Op("conv", "gconv", "fixed", (7,), Affine(8), Affine(8), Affine(2), **image),
        Op("norm", "layer_norm", "norm", (7,), c, c, **image),
        Op("matmul", "bmm", "attention", (9, 8), head, scores, heads, out_size=(9, 1), batch=batch),
        Op("other", "roll", "move", (9,), c, c, **image),
        Op("pool", "mean", "pool", (11,), c, c, kernel=(8, 8), in_size=(8, 8), batch=batch),
        Op("linear", "addmm", "fc", (12,), c, Affine(10), batch=batch),
    )
    return OpTable(ops, (), SIZES, 2)


ROOFLINES = {
    family: Roofline(0.01 * (i + 1), 50.0 + 20 * i, 5.0 + i) for i, family in enumerate(FAMILIES)
}


def aligned(alignment):
    return {f: dataclasses.replace(r, alignment=alignment) for f, r in ROOFLINES.items()}


def candidates(n, seed=0):
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, np.array(SIZES) + 1, (n, len(SIZES)))
    return widths, rng.random((n, 2)) < 0.6


def naive(table, widths, keep, *, alignment, overlap, constant):
    """The definition, one kernel and one candidate at a time."""
    total = constant
    for kernel in table.kernels:
        if kernel.block >= 0 and not keep[kernel.block]:
            continue
        padding = 1 if kernel.family in ("matmul", "copy") else alignment
        cin, cout = (
            math.ceil(dim.at(widths) / padding) * padding for dim in (kernel.cin, kernel.cout)
        )
        product = cin * cout / kernel.groups.at(widths)
        if kernel.family == "dwconv":
            product = cout
        limit = ROOFLINES[kernel.family]
        computing = kernel.macs * product / (limit.peak_gmacs_per_s * 1e6)
        elements = kernel.reads * cin + kernel.writes * cout + kernel.weights * product
        moving = 2 * elements / (limit.bandwidth_gb_s * 1e6)
        busy = max(computing, moving) if overlap == "full" else computing + moving
        total += limit.overhead_ms + busy
    return total


@pytest.mark.parametrize("overlap", ["none", "full"])
@pytest.mark.parametrize("alignment", [1, 8])
def test_prediction_equals_the_loop_over_kernels(overlap, alignment):
    table = fuse(op_table(), "tensorrt")
    assert {kernel.family for kernel in table.kernels} == set(FAMILIES)
    predictor = RooflinePredictor(
        table,
        aligned(alignment),
        bytes_per_element=2,
        overlap=overlap,
        constant_ms=0.3,
    )
    widths, keep = candidates(40)
    expected = [
        naive(table, w, k, alignment=alignment, overlap=overlap, constant=0.3)
        for w, k in zip(widths.tolist(), keep, strict=True)
    ]
    np.testing.assert_allclose(predictor.predict(widths, keep), expected, rtol=1e-5)


def test_prediction_does_not_depend_on_the_company():
    predictor = predictor_for(op_table(), made_up_profile())
    widths, keep = candidates(20_000)
    together = predictor.predict(widths, keep)
    chosen = [0, 1, 7777, 19_999]
    alone = [predictor.predict(widths[i : i + 1], keep[i : i + 1])[0] for i in chosen]
    assert together[chosen].tolist() == alone
    assert predictor.predict(widths[5:9], keep[5:9]).tolist() == together[5:9].tolist()


def test_no_candidates_give_no_predictions():
    widths, keep = candidates(0)
    assert predictor_for(op_table(), made_up_profile()).predict(widths, keep).shape == (0,)


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_breakdown_adds_up(overlap):
    predictor = RooflinePredictor(
        fuse(op_table(), "tensorrt"),
        aligned(8),
        bytes_per_element=2,
        overlap=overlap,
        constant_ms=0.3,
    )
    widths, keep = candidates(3)
    for row in range(3):
        lines = predictor.breakdown(widths[row], keep[row])
        total = predictor.predict(widths[row : row + 1], keep[row : row + 1])[0]
        assert sum(ms for *_, ms in lines) == pytest.approx(total, rel=1e-6)
        assert len(lines) == len(fuse(op_table(), "tensorrt").kernels) + 1
    assert lines[-1] == ("(network)", "constant", 0.3)
    assert lines[0][0] == "stem conv"


def test_dropped_block_costs_nothing():
    predictor = predictor_for(op_table(), made_up_profile())
    full, keep = np.array([SIZES]), np.array([[True, True]])
    dense = predictor.breakdown(full[0], keep[0])
    dropped = predictor.breakdown(full[0], np.array([False, True]))
    gone = [name for name, _, ms in dropped if ms == 0.0]
    assert gone == ["one conv", "two conv+add"]
    saved = sum(ms for name, _, ms in dense if name in gone)
    less = predictor.predict(full, np.array([[False, True]]))
    assert less[0] == pytest.approx(predictor.predict(full, keep)[0] - saved)


def test_narrower_is_never_slower():
    predictor = predictor_for(op_table(), made_up_profile())
    widths, keep = candidates(200)
    wider = np.minimum(widths + 5, SIZES)
    assert (predictor.predict(widths, keep) <= predictor.predict(wider, keep)).all()


def test_channels_are_padded_to_the_alignment():
    predictor = predictor_for(op_table(), made_up_profile(alignment=8))
    keep = np.ones((3, 2), bool)
    widths = np.array([[24, 40, 64, 6], [17, 40, 64, 6], [16, 40, 64, 6]])
    same, padded, less = predictor.predict(widths, keep)
    assert same == padded
    assert less < padded


def test_batch_scales_activations_but_not_weights():
    kernels = [fuse(op_table(batch), "tensorrt") for batch in (1, 64)]
    work = [
        KernelWork(table, paddings=[(1, 1)] * len(table.kernels), bytes_per_element=2)
        for table in kernels
    ]
    np.testing.assert_allclose(work[1].macs, 64 * work[0].macs)
    np.testing.assert_allclose(work[1].reads, 64 * work[0].reads)
    convs = [k.family == "conv" for k in kernels[0].kernels]
    np.testing.assert_array_equal(work[1].weights[convs], work[0].weights[convs])


def test_each_family_is_padded_to_its_own_alignment():
    table = fuse(op_table(), "tensorrt")
    mixed = ROOFLINES | {"conv": dataclasses.replace(ROOFLINES["conv"], alignment=16)}
    widths, keep = candidates(30)
    got = RooflinePredictor(table, mixed, bytes_per_element=2).predict(widths, keep)
    plain, padded = (
        dataclasses.replace(
            table, kernels=tuple(k for k in table.kernels if (k.family == "conv") == convs)
        )
        for convs in (False, True)
    )
    expected = [
        naive(plain, w, k, alignment=1, overlap="none", constant=0)
        + naive(padded, w, k, alignment=16, overlap="none", constant=0)
        for w, k in zip(widths.tolist(), keep, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


class ByChannels:
    """A correction that depends on every channel count, and counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def log_factor(self, shapes: Shapes):
        self.asked += len(shapes)
        assert shapes["taps"].max() <= 64
        return 0.1 * np.log(shapes["cin"]) - 0.05 * np.log(shapes["cout"]) + 0.01 * shapes.family


def test_correction_multiplies_each_kernel_and_is_asked_once():
    table = fuse(op_table(), "tensorrt")
    correction = ByChannels()
    options = {"bytes_per_element": 2, "constant_ms": 0.3}
    corrected = RooflinePredictor(table, aligned(8), correction=correction, **options)
    bare = RooflinePredictor(table, aligned(8), **options)
    widths, keep = candidates(200)
    together = corrected.predict(widths, keep)
    for row in (0, 77, 199):
        expected = 0.3
        lines = bare.breakdown(widths[row], keep[row])[:-1]
        for kernel, (*_, ms) in zip(table.kernels, lines, strict=True):
            cin, cout = kernel.cin.at(widths[row]), kernel.cout.at(widths[row])
            family = FAMILIES.index(kernel.family)
            expected += ms * np.exp(0.1 * np.log(cin) - 0.05 * np.log(cout) + 0.01 * family)
        assert together[row] == pytest.approx(expected, rel=1e-5)
    asked = correction.asked
    assert asked < 200 * len(table.kernels)
    alone = np.concatenate([corrected.predict(widths[i : i + 1], keep[i : i + 1]) for i in (3, 9)])
    assert alone.tolist() == together[[3, 9]].tolist()
    assert correction.asked == asked
