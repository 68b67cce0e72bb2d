import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency.kernels import FAMILIES, from_layers
from autoprune.latency.measurements import (
    MINIMUM_KERNELS,
    Names,
    Selection,
    family_of,
    kernel_shapes,
    read_names,
    read_tables,
    select,
)
from autoprune.latency.samples import EXACT, Origin, shapes_of

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("AUTOPRUNE_SHARED", ROOT.parent / "shared")) / "device_data"

HEAD = "device,runtime,precision,batch,network,img_size,latency_ms,repo,path\n"


def layers_of(depth):
    """A chain of ``depth`` convolutions and a classifier."""
    rows = [["conv", 3, 8, 3, 1, 1, 32, 32, 32, 32]]
    rows += [["conv", 8, 8, 3, 1, 1, 32, 32, 32, 32]] * depth
    return [*rows, ["globalpool", 8, 8, 32, 1, 1, 32, 32, 1, 1], ["fc", 8, 4, 1, 1, 1, 1, 1, 1, 1]]


LAYERS = {f"net{i}": layers_of(i) for i in range(1, 10)} | {
    "folded": [["conv", 12, 8, 3, 1, 1, 16, 16, 16, 16]]
}


def line(**changes):
    row = {
        "device": "board", "runtime": "tensorrt", "precision": "fp16", "batch": 1,
        "network": "net1", "img_size": 32, "latency_ms": 2.5, "repo": "a/b", "path": "t.md",
    }  # fmt: skip
    return ",".join(str(value) for value in (row | changes).values())


def nine(**changes):
    """Nine networks whose latency follows their depth; ``changes`` apply to the first."""
    lines = [line(network=f"net{i}", latency_ms=1 + 0.5 * i) for i in range(1, 10)]
    return [line(**changes), *lines[1:]] if changes else lines


def table(tmp_path, lines, head=HEAD, name="t.csv"):
    path = tmp_path / name
    path.write_text(head + "\n".join(lines) + "\n")
    return path


NAMES = Names({}, {"a/b": "c0ffee"}, {"a/b": "MIT"})
SELECTION = Selection(("board",), {"tensorrt": "tensorrt"}, "fp16", 1)


def chosen(*paths, names=NAMES, layers=LAYERS, selection=SELECTION):
    return select(read_tables(paths), layers, selection, names=names)


def refused(*paths, **options):
    with pytest.raises(ProfileError) as caught:
        chosen(*paths, **options)
    return str(caught.value)


# --- networks ------------------------------------------------------------------------------------


def test_rows_become_samples_with_kernels(tmp_path):
    selected = chosen(table(tmp_path, nine()))
    samples = selected.samples
    assert samples.names == tuple(f"net{i}" for i in range(1, 10))
    assert samples.latency_ms.tolist() == [1 + 0.5 * i for i in range(1, 10)]
    assert samples.origins == (Origin("a/b", "t.md", "tensorrt", "tensorrt", "c0ffee", "MIT"),)
    assert samples.whole.all()
    assert samples.families == ["conv", "linear", "pool"]
    assert selected.left_out == {}


def test_other_devices_runtimes_precisions_and_batches_are_ignored(tmp_path):
    others = [
        line(device="other"), line(runtime="pytorch"), line(precision="fp32"), line(batch=2),
    ]  # fmt: skip
    assert len(chosen(table(tmp_path, nine() + others)).samples) == 9


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path):
    lines = [*nine(), line(network="unknown"), line(network="big", img_size=64)]
    names = Names({"big": "net1"}, NAMES.commits, NAMES.licences)
    selected = chosen(table(tmp_path, lines), names=names)
    assert selected.left_out == {
        "unknown": "no layer list",
        "big": "measured at 64 pixels, its layer list is for 32",
    }


def test_folded_image_has_the_size_it_had_before(tmp_path):
    fits = chosen(table(tmp_path, [*nine(), line(network="folded")]))
    assert len(fits.samples) == 10
    other = chosen(table(tmp_path, [*nine(), line(network="folded", img_size=48)]))
    assert list(other.left_out) == ["folded"]


def test_older_tables_call_the_network_model(tmp_path):
    path = table(tmp_path, nine(), head=HEAD.replace("network", "model"))
    assert chosen(path).samples.names[0] == "net1"


def test_rules_of_a_row_follow_its_runtime(tmp_path):
    path = table(tmp_path, [*nine(), line(runtime="tensorrt_old")])
    assert read_tables([path]).runtimes() == ["tensorrt", "tensorrt_old"]
    rules = {"tensorrt": "tensorrt", "tensorrt_old": "eager"}
    selection = Selection(("board",), rules, "fp16", 1)
    fusion = [origin.fusion for origin in chosen(path, selection=selection).samples.origins]
    assert fusion == ["tensorrt", "eager"]
    with pytest.raises(UnknownNameError, match="nonsense"):
        chosen(path, selection=Selection(("board",), {"tensorrt": "nonsense"}, "fp16", 1))


def test_parquet_is_read_as_csv_is(tmp_path):
    path = table(tmp_path, nine())
    other = tmp_path / "t.parquet"
    pd.read_csv(path).to_parquet(other)
    assert chosen(path).samples.names == chosen(other).samples.names


def test_own_table_needs_no_source(tmp_path):
    head = "device,runtime,precision,batch,network,latency_ms\n"
    lines = [f"board,tensorrt,fp16,1,net{i},{1 + 0.5 * i}" for i in range(1, 10)]
    (origin,) = chosen(table(tmp_path, lines, head)).samples.origins
    assert (origin.repository, origin.file) == ("own measurements", "t.csv")
    assert origin.commit.startswith("sha256:")
    assert origin.licence == "unpublished"


def test_source_in_the_table_is_used(tmp_path):
    head = HEAD.strip() + ",commit,licence\n"
    lines = [f"{row},abc,BSD-3-Clause" for row in nine()]
    (origin,) = chosen(table(tmp_path, lines, head), names=Names()).samples.origins
    assert (origin.commit, origin.licence) == ("abc", "BSD-3-Clause")


# --- kernels -------------------------------------------------------------------------------------

KERNEL_HEAD = (
    "device,runtime,precision,batch,op,cin,cout,kernel,stride,groups,h,w,m,n,k,adds,latency_ms\n"
)


def kernel(**changes):
    row = {
        "device": "board", "runtime": "tensorrt", "precision": "fp16", "batch": 1, "op": "conv",
        "cin": 16, "cout": 32, "kernel": 3, "stride": 1, "groups": 1, "h": 28, "w": 28,
        "m": "", "n": "", "k": "", "adds": "", "latency_ms": 0.1,
    }  # fmt: skip
    return ",".join(str(value) for value in (row | changes).values())


def forty(**changes):
    """Forty convolutions whose latency follows their channels; ``changes`` apply to the first."""
    rows = [
        kernel(cin=cin, cout=cout, latency_ms=0.02 + 1e-5 * cin * cout)
        for cin in (8, 16, 24, 32, 64)
        for cout in (8, 16, 24, 32, 48, 64, 96, 128)
    ]
    if not changes:
        return rows
    return [kernel(**({"cin": 8, "cout": 8, "latency_ms": 0.0206} | changes)), *rows[1:]]


LAYER = {
    "conv": ["conv", 16, 32, 3, 1, 1, 28, 28, 28, 28],
    "strided": ["conv", 16, 32, 3, 2, 1, 27, 27, 14, 14],
    "pointwise stride": ["conv", 16, 32, 1, 2, 1, 28, 28, 14, 14],
    "dwconv": ["dwconv", 16, 16, 5, 1, 16, 28, 28, 28, 28],
    "gconv": ["gconv", 16, 32, 3, 1, 4, 28, 28, 28, 28],
    "fc": ["fc", 64, 10, 1, 1, 1, 1, 1, 1, 1],
    "maxpool": ["maxpool", 16, 16, 3, 2, 1, 28, 28, 14, 14],
    "globalpool": ["globalpool", 16, 16, 28, 1, 1, 28, 28, 1, 1],
    "relu": ["relu", 16, 16, 1, 1, 1, 28, 28, 28, 28],
    "bn": ["bn", 16, 16, 1, 1, 1, 28, 28, 28, 28],
}


@pytest.mark.parametrize("name", LAYER)
@pytest.mark.parametrize("batch", [1, 4])
def test_kernel_row_is_the_kernel_that_a_network_launches(tmp_path, name, batch):
    op, cin, cout, side, stride, groups, h, w, *_ = LAYER[name]
    row = kernel(
        batch=batch, op=op, cin=cin, cout=cout, kernel=side, stride=stride, groups=groups, h=h, w=w
    )
    tables = read_tables([table(tmp_path, [row], KERNEL_HEAD)]).checked()
    got = kernel_shapes(tables.kernels)
    expected = shapes_of(from_layers([LAYER[name]], "eager", batch=batch))
    assert got.family.tolist() == expected.family.tolist()
    np.testing.assert_array_equal(got.values, expected.values)


def test_matrix_products_are_linears_with_rows_for_positions(tmp_path):
    rows = [
        kernel(op="gemm", cin="", cout="", h="", w="", m=197, n=768, k=192),
        kernel(op="linear", cin=192, cout=768, kernel=1, h=197, w=1),
        kernel(op="matmul", cin="", cout="", h="", w="", groups=3, m=197, n=197, k=64, batch=2),
    ]
    tables = read_tables([table(tmp_path, rows, KERNEL_HEAD)]).checked()
    shapes = kernel_shapes(tables.kernels)
    np.testing.assert_array_equal(shapes.values[0], shapes.values[1])
    assert [FAMILIES[i] for i in shapes.family] == ["linear", "linear", "matmul"]
    macs, _ = shapes.work(EXACT, 2)
    assert macs.tolist() == [197 * 768 * 192, 197 * 768 * 192, 2 * 3 * 197 * 197 * 64]


def test_added_tensor_and_two_sided_kernels_are_counted(tmp_path):
    rows = [
        kernel(),
        kernel(adds=1),
        kernel(kernel="1x7"),
        kernel(op="add", cout=16, kernel=1),
        kernel(op="relu", cout=16, kernel=1),
    ]
    shapes = kernel_shapes(read_tables([table(tmp_path, rows, KERNEL_HEAD)]).checked().kernels)
    assert (shapes["writes"][1] == 2 * shapes["writes"][0]).all()
    assert shapes["taps"][2] == 7
    assert shapes["reads"][3] == 2 * shapes["reads"][4]


def test_kernels_are_grouped_by_output_channels(tmp_path):
    samples = chosen(table(tmp_path, forty(), KERNEL_HEAD)).samples
    assert len(samples) == 40
    assert not samples.whole.any()
    assert sorted(set(samples.groups)) == [8, 16, 24, 32, 48, 64, 96, 128]


def test_depthwise_rows_may_leave_groups_out(tmp_path):
    row = kernel(op="dwconv", cin=24, cout=24, groups="")
    shapes = kernel_shapes(read_tables([table(tmp_path, [row], KERNEL_HEAD)]).checked().kernels)
    assert FAMILIES[shapes.family[0]] == "dwconv"
    assert shapes["groups"][0] == 24


def test_networks_and_kernels_go_together(tmp_path):
    networks = table(tmp_path, nine()[:3], name="n.csv")
    kernels = table(tmp_path, forty(), KERNEL_HEAD, name="k.csv")
    samples = chosen(networks, kernels).samples
    assert samples.whole.tolist() == [True] * 3 + [False] * 40
    assert {origin.repository for origin in samples.origins} == {"a/b", "own measurements"}


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "-1", "0", "nan", "inf", "fast"])
def test_latency_that_is_no_positive_number_is_told_with_its_line(tmp_path, value):
    for lines, head in ((nine(latency_ms=value), HEAD), (forty(latency_ms=value), KERNEL_HEAD)):
        path = table(tmp_path, lines, head)
        assert f"{path}, line 2: latency_ms must be a positive number" in refused(path)


def test_rows_of_parquet_are_numbered(tmp_path):
    path = tmp_path / "t.parquet"
    frame = pd.read_csv(table(tmp_path, nine()))
    frame.assign(latency_ms=[*frame["latency_ms"][:8], -1.0]).to_parquet(path)
    assert f"{path}, row 8: latency_ms" in refused(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "convolve"}, "unknown op 'convolve'; known: conv"),
        ({"cin": 0}, "cin must be a positive whole number, got 0"),
        ({"h": ""}, "h must be a positive whole number"),
        ({"op": "gemm", "m": 4, "n": 2.5, "k": 3}, "n must be a positive whole number, got 2.5"),
        ({"kernel": "3x"}, "kernel must be a whole number or HEIGHTxWIDTH, got 3x"),
        ({"stride": -2}, "stride must be"),
        ({"groups": 3}, "3 groups divide neither 8 nor 8 channels evenly"),
        ({"batch": 0}, "batch must be a positive whole number, got 0"),
        ({"adds": -1}, "adds must be a number of tensors"),
    ],
)
def test_wrong_cells_of_kernels_are_told(tmp_path, changes, message):
    path = table(tmp_path, forty(**changes), KERNEL_HEAD)
    found = refused(path)
    assert f"{path}, line 2: {message}" in found
    assert found.count(f"{path}, ") == 1


@pytest.mark.parametrize(("factor", "word"), [(1000, "microseconds"), (0.001, "seconds")])
def test_rows_in_another_unit_are_told_row_by_row(tmp_path, factor, word):
    lines = [
        line(network=f"net{i}", latency_ms=(1 + 0.5 * i) * (factor if i in (3, 7) else 1))
        for i in range(1, 10)
    ]
    path = table(tmp_path, lines)
    found = refused(path)
    assert [f"{path}, line {n}:" in found for n in (4, 8)] == [True, True]
    assert found.count(f"is it in {word}?") == 2
    kernels = forty(latency_ms=0.0206 * factor)
    found = refused(table(tmp_path, kernels, KERNEL_HEAD))
    assert found.count(f"is it in {word}?") == 1
    assert "line 2:" in found


def test_whole_table_in_seconds_is_faster_than_any_device(tmp_path):
    rows = [
        kernel(cin=1024, cout=cout, h=64, w=64, latency_ms=1e-6 * cout)
        for cout in range(64, 64 * 41, 64)
    ]
    found = refused(table(tmp_path, rows, KERNEL_HEAD))
    assert "which no device reaches; is it in seconds?" in found
    assert "and 20 more rows with the same fault" in found


def test_whole_table_in_microseconds_is_slower_than_any_device(tmp_path):
    lines = [line(network=f"net{i}", latency_ms=1e6 * (1 + 0.5 * i)) for i in range(1, 10)]
    assert "all 9 rows" in refused(table(tmp_path, lines))


def test_equal_rows_may_differ_a_little(tmp_path):
    assert len(chosen(table(tmp_path, [*nine(), line(latency_ms=1.7)])).samples) == 10
    path = table(tmp_path, [*nine(), line(latency_ms=3.0)])
    found = refused(path)
    assert f"{path}, line 2; {path}, line 11: 2 equal rows disagree" in found
    assert "1.5 to 3 ms" in found
    path = table(tmp_path, [*forty(), kernel(cin=8, cout=8, latency_ms=0.04)], KERNEL_HEAD)
    assert f"{path}, line 2; {path}, line 42: 2 equal rows disagree" in refused(path)


def test_too_few_rows_say_how_many_are_needed(tmp_path):
    assert "7 different networks with a layer list, at least 8" in refused(
        table(tmp_path, nine()[:7])
    )
    found = refused(table(tmp_path, forty()[: MINIMUM_KERNELS - 1], KERNEL_HEAD))
    assert "29 rows of kernels, at least 30 are needed" in found


def test_layer_list_that_does_not_chain_is_told(tmp_path):
    broken = [["conv", 3, 8, 3, 1, 1, 32, 32, 32, 32], ["conv", 16, 8, 3, 1, 1, 32, 32, 32, 32]]
    short = [["conv", 3, 8]]
    found = refused(table(tmp_path, nine()), layers=LAYERS | {"net1": broken, "net2": short})
    assert "the layer list of 'net1' does not chain" in found
    assert "row 1: conv reads 16 channels of 32x32, which no row before it writes" in found
    assert "the layer list of 'net2' is malformed" in found


def test_everything_wrong_is_told_at_once(tmp_path):
    first = table(tmp_path, ["1,2"], head="a,b\n", name="a.csv")
    second = table(
        tmp_path, [*nine(latency_ms=-1), line(network="net2", latency_ms=9)], name="b.csv"
    )
    third = table(tmp_path, forty(op="convolve"), KERNEL_HEAD, name="c.csv")
    broken = LAYERS | {"net9": [["conv", 3, 8]]}
    found = refused(first, second, third, tmp_path / "none.csv", layers=broken)
    for part in (
        "a.csv: no column device",
        "b.csv, line 2: latency_ms",
        "b.csv, line 3; ",
        "c.csv, line 2: unknown op",
        "none.csv",
        "'net9' is malformed",
    ):
        assert part in found


def test_many_equal_faults_are_counted(tmp_path):
    rows = [kernel(latency_ms=-1) for _ in range(25)]
    found = refused(table(tmp_path, rows, KERNEL_HEAD))
    assert found.count("latency_ms must be") == 20
    assert "and 5 more rows with the same fault" in found


def test_nothing_selected_names_the_devices(tmp_path):
    found = refused(table(tmp_path, [line(device="other")]))
    assert "devices in the tables: other; runtimes: tensorrt" in found


@pytest.mark.parametrize(("column", "sort"), [("h", KERNEL_HEAD), ("network", HEAD)])
def test_missing_column_is_named(tmp_path, column, sort):
    path = tmp_path / "t.csv"
    rows = forty() if sort is KERNEL_HEAD else nine()
    frame = pd.read_csv(table(tmp_path, rows, sort)).drop(columns=[column, *"mnk"], errors="ignore")
    frame.to_csv(path, index=False)
    assert f"{path}: no column {column}" in refused(path)


# --- names ---------------------------------------------------------------------------------------


def test_names_file_is_read(tmp_path):
    path = tmp_path / "names.json"
    source = {"commit": "abc", "licence": "MIT"}
    path.write_text(json.dumps({"networks": {"a": "b"}, "sources": {"x/y": source}}))
    assert read_names(path) == Names({"a": "b"}, {"x/y": "abc"}, {"x/y": "MIT"})


@pytest.mark.parametrize(
    "content",
    [{"other": 1}, {"networks": {"a": 1}}, {"sources": {"x": {"commit": "a"}}}, {"sources": []}],
)
def test_names_file_of_another_form_is_refused(tmp_path, content):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ProfileError, match=r"names\.json: expected"):
        read_names(path)


@pytest.mark.parametrize(
    ("network", "family"),
    [
        ("resnet18", "resnet"),
        ("Classification/ResNet18", "resnet"),
        ("mobilenet_v2", "mobilenet"),
        ("torchvision:resnet18", "resnet"),
        ("Classification/MobileNetV3-large", "mobilenet"),
        ("shufflenet_v2_x0_5", "shufflenet"),
        ("Detection/YOLOX-s", "yolox"),
        ("7net", "7net"),
    ],
)
def test_family_is_the_name_without_version_and_size(network, family):
    assert family_of(network) == family


# --- published tables ----------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_published_kernels_are_plausible(tmp_path, precision):
    """No row of a table that others have used is taken for a mistake."""
    frame = pd.read_parquet(SHARED / "op_conv_v100_tensorrt.parquet")
    frame = frame[frame["precision"] == precision].sample(3000, random_state=0)
    op = np.where(frame["op"] == "Depthwise", "dwconv", "conv")
    path = tmp_path / "v100.parquet"
    frame.assign(op=op, adds=frame["fused"]).to_parquet(path)
    selection = Selection(("v100",), {"tensorrt": "tensorrt"}, precision)
    assert len(chosen(path, selection=selection).samples) == 3000
