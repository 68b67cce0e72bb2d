import json

import pytest

from autoprune.errors import ProfileError, UnknownNameError
from autoprune.latency.tables import (
    Names,
    Origin,
    Selection,
    family_of,
    read_names,
    read_tables,
    runtimes_of,
    select,
)

HEAD = "device,runtime,precision,batch,model,img_size,latency_ms,repo,path\n"
ROWS = {
    "net": [["conv", 3, 8, 3, 1, 1, 32, 32, 32, 32], ["fc", 8, 4, 1, 1, 1, 1, 1, 1, 1]],
    "folded": [["conv", 12, 8, 3, 1, 1, 16, 16, 16, 16]],
}


def table(tmp_path, lines, head=HEAD, name="t.csv"):
    path = tmp_path / name
    path.write_text(head + "\n".join(lines))
    return path


def line(**changes):
    row = {
        "device": "board", "runtime": "tensorrt", "precision": "fp16", "batch": 1, "model": "net",
        "img_size": 32, "latency_ms": 2.5, "repo": "a/b", "path": "t.md",
    }  # fmt: skip
    return ",".join(str(value) for value in (row | changes).values())


def chosen(path, names=None):
    selection = Selection(("board",), {"tensorrt": "tensorrt"}, "fp16", 1)
    return select(read_tables([path]), ROWS, selection, names=names or Names())


def test_row_becomes_a_measurement_with_kernels(tmp_path):
    (measurement,), left_out = chosen(table(tmp_path, [line()]))
    assert (measurement.network, measurement.latency_ms) == ("net", 2.5)
    assert measurement.origin == Origin("a/b", "t.md", "tensorrt", "tensorrt")
    assert [kernel.family for kernel in measurement.kernels.kernels] == ["conv", "linear"]
    assert left_out == {}


def test_other_devices_runtimes_precisions_and_batches_are_ignored(tmp_path):
    lines = [
        line(),
        line(device="other"),
        line(runtime="pytorch"),
        line(precision="fp32"),
        line(batch=2),
    ]
    measurements, _ = chosen(table(tmp_path, lines))
    assert len(measurements) == 1


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path):
    lines = [line(), line(model="unknown"), line(model="big", img_size=64)]
    names = Names({"big": "net"})
    measurements, left_out = chosen(table(tmp_path, lines), names)
    assert [m.network for m in measurements] == ["net"]
    assert left_out == {
        "unknown": "no layer list",
        "big": "measured at 64 pixels, its layer list is for 32",
    }


def test_folded_image_has_the_size_it_had_before(tmp_path):
    measurements, left_out = chosen(table(tmp_path, [line(model="folded")]))
    assert len(measurements) == 1
    assert left_out == {}
    _, left_out = chosen(table(tmp_path, [line(), line(model="folded", img_size=48)]))
    assert list(left_out) == ["folded"]


def test_column_network_is_model(tmp_path):
    path = table(tmp_path, [line()], head=HEAD.replace("model", "network"))
    assert chosen(path)[0][0].network == "net"


def test_rules_of_a_row_follow_its_runtime(tmp_path):
    data = read_tables([table(tmp_path, [line(), line(runtime="tensorrt_old")])])
    assert runtimes_of(data, "tensorrt") == ("tensorrt", "tensorrt_old")
    rules = {"tensorrt": "tensorrt", "tensorrt_old": "eager"}
    selection = Selection(("board",), rules, "fp16", 1)
    measurements, _ = select(data, ROWS, selection, names=Names())
    assert [m.origin.fusion for m in measurements] == ["tensorrt", "eager"]
    wrong = Selection(("board",), {"tensorrt": "nonsense"}, "fp16", 1)
    with pytest.raises(UnknownNameError, match="nonsense"):
        select(data, ROWS, wrong, names=Names())


def test_nothing_selected_names_the_devices(tmp_path):
    with pytest.raises(ProfileError, match="devices in the tables: other"):
        chosen(table(tmp_path, [line(device="other")]))


def test_faults_of_all_tables_are_listed(tmp_path):
    no_columns = table(tmp_path, ["1,2"], head="a,b\n", name="a.csv")
    negative = table(tmp_path, [line(), line(latency_ms=-1), line(latency_ms="x")], name="b.csv")
    with pytest.raises(ProfileError) as caught:
        read_tables([no_columns, negative, tmp_path / "none.csv"])
    message = str(caught.value)
    assert "no column device" in message
    assert "rows [1, 2]" in message
    assert "none.csv" in message


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
        ("Classification/MobileNetV3-large", "mobilenet"),
        ("shufflenet_v2_x0_5", "shufflenet"),
        ("Detection/YOLOX-s", "yolox"),
        ("7net", "7net"),
    ],
)
def test_family_is_the_name_without_version_and_size(network, family):
    assert family_of(network) == family
