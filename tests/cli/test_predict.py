import csv
import json

import pytest

from autoprune.cli.main import main
from autoprune.errors import ExportError
from autoprune.export.package import PackageMetrics, save_package
from autoprune.latency.profile import load_profile, save_profile
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified
from autoprune.testing.profiles import made_up_profile

MODEL = """
import torch
from torch import nn


def net(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )


def rolls():
    class Rolls(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x):
            return torch.renorm(self.layer(x), 2, 1, 1.0)

    return Rolls()
"""

LAYERS = {
    "plain": [
        ["conv", 1, 8, 3, 1, 1, 6, 6, 4, 4],
        ["relu", 8, 8, 1, 1, 1, 4, 4, 4, 4],
        ["conv", 8, 4, 3, 1, 1, 4, 4, 2, 2],
        ["view", 4, 4, 1, 1, 1, 2, 2, 2, 2],
        ["fc", 16, 3, 1, 1, 1, 1, 1, 1, 1],
    ],
    "wide": [["conv", 1, 64, 3, 1, 1, 6, 6, 4, 4]],
}


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys, board):
    """Runs ``autoprune predict`` beside a small net; returns exit code, stdout and stderr."""
    (tmp_path / "nets.py").write_text(MODEL)
    (tmp_path / "all.json").write_text(json.dumps(LAYERS))
    (tmp_path / "plain.json").write_text(json.dumps({"plain": LAYERS["plain"]}))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, device=board):
        chosen = ["--device", device] if device else []
        return main(["predict", *arguments, *chosen]), *capsys.readouterr()

    return run


def found(out):
    return json.loads(out)


def test_model_shows_milliseconds_with_error_memory_and_kernels(predict, board):
    code, out, _ = predict("nets.py:net", "--input", "1x1x6x6")
    assert code == 0
    profile = load_profile(board)
    text = out.replace("\N{NO-BREAK SPACE}", " ")
    assert f"({profile.error_text}); {profile.quality} data" in text
    # 4x4x8x9 + 2x2x4x8x9 + 16x3 multiply-accumulates
    assert "2.35 kMACs" in text
    assert "energy: not predicted; this profile carries no measured power" in text
    assert "0 convolution+relu" in text
    assert "(network)" in text


def test_kernels_add_up_and_come_dearest_first(predict):
    code, out, _ = predict("nets.py:net", "--input", "1x1x6x6", "--json")
    content = found(out)
    times = [kernel["latency_ms"] for kernel in content["kernels"]]
    assert code == 0
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(content["latency_ms"], rel=1e-5)
    assert sum(kernel["share"] for kernel in content["kernels"]) == pytest.approx(1, rel=1e-5)
    assert sum(kernel["macs"] for kernel in content["kernels"]) == content["macs"] == 2352
    assert content["weight_bytes"] == 2 * (80 + 292 + 51)
    # The second convolution reads 8x4x4 and writes 4x2x2 numbers of two bytes.
    assert content["activation_bytes"] == 2 * (128 + 16)
    assert content["energy_mj"] is None


@pytest.mark.parametrize(
    ("row", "limit"),
    [
        (["conv", 1, 1, 1, 1, 1, 1, 1, 1, 1], "launch"),
        (["conv", 512, 512, 3, 1, 1, 32, 32, 32, 32], "arithmetic"),
        (["relu", 512, 512, 1, 1, 1, 64, 64, 64, 64], "memory"),
    ],
)
def test_what_limits_a_kernel(predict, tmp_path, row, limit):
    (tmp_path / "one.json").write_text(json.dumps({"one": [row]}))
    code, out, _ = predict("--layers", "one.json", "--json")
    limits = {line["limit"] for line in found(out)["kernels"]}
    assert (code, limits) == (0, {limit, "constant"})


def test_layer_list_equals_the_model_it_was_written_from(predict, capsys):
    main(["inspect", "nets.py:net", "--input", "1x1x6x6", "--layers", "net.json"])
    capsys.readouterr()
    _, traced, _ = predict("nets.py:net", "--input", "1x1x6x6", "--json")
    _, listed, _ = predict("--layers", "net.json", "--json")
    traced, listed = found(traced), found(listed)
    for key in ("latency_ms", "macs", "activation_bytes"):
        assert listed[key] == traced[key]


def test_batch_multiplies_the_work_and_is_noted_where_it_was_not_measured(predict):
    _, one, _ = predict("nets.py:net", "--input", "1x1x6x6", "--json")
    _, four, _ = predict("nets.py:net", "--input", "1x1x6x6", "--batch", "4", "--json")
    _, given, _ = predict("nets.py:net", "--input", "4x1x6x6", "--json")
    one, four, given = found(one), found(four), found(given)
    assert four == given
    assert four["batch"] == 4
    assert four["macs"] == 4 * one["macs"]
    assert four["activation_bytes"] == 4 * one["activation_bytes"]
    assert four["weight_bytes"] == one["weight_bytes"]
    assert one["notes"] == []
    assert any("batch 4 is extrapolated" in note for note in four["notes"])


def test_energy_is_predicted_where_a_profile_carries_power(predict, tmp_path):
    power = {"watts": 4.0, "source": "made up"}
    save_profile(made_up_profile(power=power), tmp_path / "powered.yaml")
    _, text, _ = predict("--layers", "plain.json", device="powered.yaml")
    _, out, _ = predict("--layers", "plain.json", "--json", device="powered.yaml")
    assert "mJ at 4 W (made up)" in text
    assert found(out)["energy_mj"] == pytest.approx(4 * found(out)["latency_ms"])


def test_rows_limit_the_breakdown_and_say_what_is_left(predict):
    _, short, _ = predict("--layers", "plain.json", "--rows", "1")
    _, full, _ = predict("--layers", "plain.json", "--rows", "0")
    assert "and 3 more" in short
    assert "more:" not in full


def test_operators_without_a_rule_are_noted(predict):
    code, out, _ = predict("nets.py:rolls", "--input", "2x6")
    assert code == 0
    assert "operators without a rule: aten.renorm" in out


def test_fake_weights_predict_the_same(predict):
    _, fake, _ = predict("nets.py:net", "--input", "1x1x6x6", "--json", "--fake")
    _, real, _ = predict("nets.py:net", "--input", "1x1x6x6", "--json", "--values")
    assert found(fake) == found(real)


def test_table_writes_a_csv_row_per_network(predict, tmp_path):
    code, out, _ = predict("--table", "all.json", "-o", "found.csv")
    assert code == 0
    assert "2 networks on made_up" in out
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    _, alone, _ = predict("--layers", "plain.json", "--json")
    assert [row["network"] for row in rows] == ["plain", "wide"]
    assert float(rows[0]["latency_ms"]) == pytest.approx(found(alone)["latency_ms"], rel=1e-5)
    assert rows[0]["macs"] == str(found(alone)["macs"])
    assert rows[0]["batch"] == "1"


def test_table_goes_to_standard_output_as_csv_or_json(predict):
    _, text, _ = predict("--table", "all.json")
    _, content, _ = predict("--table", "all.json", "--json", "--batch", "2")
    assert text.startswith("network,device,")
    assert [network["batch"] for network in found(content)] == [2, 2]


def test_table_names_every_fault(predict, tmp_path):
    bad = {"plain": LAYERS["plain"], "short": [["conv", 1]], "odd": [["fc", 0, *[1] * 8]]}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    code, _, err = predict("--table", "bad.json")
    assert code == 2
    assert "'short'" in err
    assert "'odd'" in err


def test_layers_with_several_networks_point_to_table(predict):
    code, _, err = predict("--layers", "all.json")
    assert code == 2
    assert "all.json holds 2 networks" in err
    assert "--table all.json" in err


def test_every_fault_of_the_options_comes_at_once(predict):
    code, _, err = predict("--input", "1x3", "-o", "x.csv", device=None)
    assert code == 2
    assert "--device: missing" in err
    assert "exactly one of MODEL" in err
    assert "--output goes with --table" in err
    assert "--data and --input go with MODEL" in err


def test_unwritable_output_is_one_line(predict):
    code, _, err = predict("--table", "all.json", "-o", "no/such/folder.csv")
    assert code == 2
    assert "cannot write no/such/folder.csv" in err


@pytest.fixture
def folder(tmp_path):
    """A pruned network that was saved with its recorded source."""
    import importlib.util

    import torch

    path = tmp_path / "nets.py"
    path.write_text(MODEL)
    spec = importlib.util.spec_from_file_location("nets_for_predict", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = verified(trace(module.net(), torch.randn(2, 1, 6, 6)))
    (group,) = [group for group in network.groups if group.size == 8]
    plan = PruningPlan({group.name: (0, 2, 5)}, ())
    metrics = PackageMetrics(
        accuracy=None, loss=None, latency_ms=1.0, latency_error=0.1, profile="x", macs=1, params=1
    )
    return save_package(
        tmp_path / "network",
        model=Surgeon(network).cut(plan),
        network=network,
        plan=plan,
        source="nets.py:net",
        metrics=metrics,
    )


def test_saved_network_is_predicted_with_its_own_inputs(predict, folder, monkeypatch):
    code, out, _ = predict(str(folder), "--trust-source", "--json")
    _, narrow, _ = predict("nets.py:net(width=3)", "--input", "1x1x6x6", "--json")
    assert code == 0
    content, expected = found(out), found(narrow)
    assert (content["macs"], content["batch"]) == (expected["macs"], 1)
    assert content["latency_ms"] == pytest.approx(expected["latency_ms"])


def test_code_of_a_saved_network_runs_only_if_trusted(predict, folder, board):
    code, _, err = predict(str(folder))
    assert code == 2
    assert "trust" in err
    with pytest.raises(ExportError, match="trust"):
        main(["--debug", "predict", str(folder), "--device", board])
