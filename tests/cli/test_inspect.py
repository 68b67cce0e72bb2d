import json

import pytest

from autoprune.cli.main import main
from autoprune.latency.layers import ops_from_rows, read_layers

MODEL = """
from torch import nn


def net(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )
"""


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """Runs ``autoprune inspect`` on a small net; returns exit code, stdout and stderr."""
    (tmp_path / "nets.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model="nets.py:net", shape="2,1,6,6"):
        shapes = ["--input-shape", shape] if shape else []
        return main(["inspect", model, *shapes, *arguments]), *capsys.readouterr()

    return run


def test_lists_groups_costs_and_what_is_frozen(inspect):
    code, out, _ = inspect()
    assert code == 0
    text = " ".join(out.replace("\N{NO-BREAK SPACE}", " ").split())
    # 2 images: 4x4x8x9 + 2x2x4x8x9 + 16x3 multiply-accumulates each
    assert "on inputs (2, 1, 6, 6): 4.70 kMACs, 423 parameters" in text
    assert "2 channel groups, 0 removable blocks" in text
    assert "0.weight[0], 0.bias[0], 2.weight[1]" in text
    assert "4: network output" in text


def test_json_has_everything(inspect):
    code, out, _ = inspect("--json", model="nets.py:net(width=5)")
    content = json.loads(out)
    assert code == 0
    assert [(group["name"], group["size"]) for group in content["groups"]] == [("0", 5), ("2", 4)]
    paths = {(member["path"], member["dim"]) for member in content["groups"][0]["members"]}
    assert {("0.weight", 0), ("0.bias", 0), ("2.weight", 1)} == paths
    assert content["inputs"] == [[2, 1, 6, 6]]
    assert content["params"] == 5 * 9 + 5 + 4 * 5 * 9 + 4 + 3 * 16 + 3
    assert content["frozen"] == {"4": "network output"}
    assert content["unsupported"] == {}


def test_layer_list_is_what_calibrate_reads(inspect, tmp_path):
    code, _, _ = inspect("--layers", str(tmp_path / "layers.json"))
    assert code == 0
    layers = read_layers([tmp_path / "layers.json"])
    assert list(layers) == ["nets.py:net"]
    assert ops_from_rows(layers["nets.py:net"]).macs()[0] == 4704 // 2  # per image


def test_digits_needs_no_shape(inspect):
    code, out, _ = inspect("--json", model="digits", shape=None)
    content = json.loads(out)
    assert code == 0
    assert content["inputs"] == [[64, 1, 32, 32]]
    assert {block["name"] for block in content["blocks"]} >= {"layer1.0", "layer3.2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "1,x"}, "--input-shape takes positive whole numbers"),
        ({"shape": "1,0,6,6"}, "--input-shape takes positive whole numbers"),
        ({"shape": "1,3,6,6"}, "does not run on inputs of shapes [(1, 3, 6, 6)]"),
        ({"model": "nets.py:nett"}, "has nothing called 'nett'; did you mean 'net'"),
    ],
)
def test_wrong_arguments(inspect, arguments, message):
    code, out, err = inspect(**arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_layer_list_that_cannot_be_written(inspect, tmp_path):
    code, _, err = inspect("--layers", str(tmp_path / "nowhere" / "layers.json"))
    assert code == 2
    assert "cannot write the layer list" in err
