import json

import pytest

from autoprune.cli.inspect import _by_reason as inspect_reasons
from autoprune.cli.main import main
from autoprune.errors import TraceError
from autoprune.latency.layers import ops_from_rows, read_layers
from autoprune.network import fake

MODEL = """
import torch
from torch import nn


def net(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )
"""


MORE = """

class Fails(nn.Module):
    def forward(self, x):
        raise KeyError("no such style")


class Nothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        self.layer(x)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return x + 1


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x, scale, extra=None):
        hidden = self.first(x)
        return self.last(torch.renorm(hidden, 2, 1, 1.0) * scale)


def fails():
    return nn.Sequential(nn.Conv2d(1, 2, 3), Fails())


def nothing():
    return Nothing()


def unused():
    return Unused()


def deep(layers=5):
    layers = [nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(layers)]
    return nn.Sequential(*layers)


def given():
    return torch.zeros(2, 1, 6, 6)
"""


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """Runs ``autoprune inspect`` on a small net; returns exit code, stdout and stderr."""
    (tmp_path / "nets.py").write_text(MODEL + MORE)
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
    assert "every group was cut once; the values were compared" in text


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
    assert content["checked"] == "values"
    assert {group["kind"] for group in content["groups"]} == {"channel"}
    assert 0 < content["prunable_macs_share"] < 1
    assert 0 < content["prunable_params_share"] < 1
    assert content["trace_seconds"] > 0
    assert content["blocks"] == content["unused"] == []


def test_without_weights_only_shapes_are_compared(inspect):
    code, out, _ = inspect("--fake")
    assert code == 0
    assert "only shapes were compared" in out
    _, out, _ = inspect("--fake", "--json")
    _, expected, _ = inspect("--values", "--json")
    content, expected = json.loads(out), json.loads(expected)
    assert (content.pop("checked"), expected.pop("checked")) == ("shapes", "values")
    content.pop("trace_seconds"), expected.pop("trace_seconds")
    assert content == expected


def test_models_that_would_not_fit_are_traced_without_weights(inspect, monkeypatch):
    monkeypatch.setattr(fake, "_free_memory", lambda: 1000)
    code, out, _ = inspect("--json", model="torchvision:squeezenet1_1", shape="1x3x32x32")
    assert (code, json.loads(out)["checked"]) == (0, "shapes")


def test_an_operator_without_a_rule_is_listed_and_no_error(inspect):
    arguments = ("--input", "x:2x6", "--input", "scale=0.5")
    code, out, _ = inspect(*arguments, "--json", model="nets.py:Odd", shape=None)
    content = json.loads(out)
    assert code == 0
    assert content["unsupported"] == {"aten.renorm": 1}
    assert content["inputs"] == [[2, 6]]
    _, out, _ = inspect(*arguments, model="nets.py:Odd", shape=None)
    assert "operators without a rule" in out
    assert "aten.renorm, 1 times" in out


def test_groups_of_repeated_layers_share_a_row_and_their_reasons_a_line(inspect):
    code, out, _ = inspect(model="nets.py:deep(9)", shape="2x8")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith("0.0 ")]
    assert rows[0][:6] == ["0.0", "...", "8.0", "9", "12", "channel"]
    lines = inspect_reasons({f"a.{i}": f"differs by 1.{i}e-02" for i in range(9)} | {"b": "why"})
    assert lines == ["a.0, a.1 and 7 more up to a.8: (9 times) differs by 1.0e-02", "b: why"]


def test_inputs_may_come_from_a_function(inspect):
    code, out, _ = inspect("--json", shape="nets.py:given")
    assert (code, json.loads(out)["inputs"]) == (0, [[2, 1, 6, 6]])


def test_the_line_of_the_users_file_is_named_and_a_traceback_shown_on_request(inspect, tmp_path):
    _, _, err = inspect(model="nets.py:fails")
    line = (
        (tmp_path / "nets.py")
        .read_text()
        .splitlines()
        .index('        raise KeyError("no such style")')
    )
    assert f"at {tmp_path / 'nets.py'}:{line + 1})" in err
    with pytest.raises(TraceError) as error:
        main(["--debug", "inspect", "nets.py:fails", "--input", "1x1x6x6"])
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_model_of_transformers_needs_no_shape(inspect, tmp_path, form):
    pytest.importorskip("transformers")
    config = {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 50},
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = tmp_path if form == "folder" else tmp_path / "config.json"
    spec = f"hf:{name}(num_hidden_layers=1)"
    code, out, _ = inspect("--json", "--fake", model=spec, shape=None)
    content = json.loads(out)
    assert code == 0
    assert content["inputs"] == [[1, 8]]
    kinds = {(group["size"], group["kind"]) for group in content["groups"]}
    assert kinds == {(16, "channel"), (24, "channel"), (2, "head")}
    assert [block["name"] for block in content["blocks"]] == ["model.layers.0"]


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
        ({"shape": "1,x"}, "--input takes positive whole numbers"),
        ({"shape": "1,0,6,6"}, "--input takes positive whole numbers"),
        ({"shape": "1,3,6,6"}, "does not run on inputs float32 (1, 3, 6, 6) on cpu"),
        ({"shape": "1x1x6x6:int7"}, "the type 'int7'; it is one of"),
        ({"shape": "1x1x6x6:float64"}, "its weights are float32, an input is float64"),
        ({"shape": "y:1x1x6x6"}, "its forward takes (input"),
        ({"model": "nets.py:fails"}, "error: KeyError: 'no such style' (in module '1' at "),
        ({"model": "nets.py:nothing"}, "Nothing returned NoneType, in which there is no tensor"),
        ({"model": "nets.py:unused"}, "without an operator on any of its 2 parameters"),
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
