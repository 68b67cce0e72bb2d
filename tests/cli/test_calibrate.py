import json

import pytest
import typer
from typer.testing import CliRunner

from autoprune.cli.calibrate import calibrate
from autoprune.errors import AutopruneError
from autoprune.latency.profile import load_profile


@pytest.fixture
def inputs(tmp_path):
    """A table of ten networks whose latency is their depth, their layer lists, and sources."""
    layers, lines = {}, ["device,runtime,precision,batch,model,img_size,latency_ms,repo,path"]
    for i in range(1, 11):
        channels = 16 * i
        body = [["conv", channels, channels, 3, 1, 1, 28, 28, 28, 28]] * i
        layers[f"net{i}"] = [["conv", 3, channels, 3, 2, 1, 56, 56, 28, 28], *body]
        lines.append(f"board,tensorrt_1,fp16,1,net{i},56,{0.5 + 0.01 * i**3},a/b,t.md")
    lines.append("board,tensorrt_1,fp16,1,odd,56,3,a/b,t.md")
    names = {"sources": {"a/b": {"commit": "c0ffee", "licence": "MIT"}}}
    (tmp_path / "table.csv").write_text("\n".join(lines))
    (tmp_path / "layers.json").write_text(json.dumps(layers))
    (tmp_path / "names.json").write_text(json.dumps(names))
    return tmp_path


def run(inputs, *more):
    app = typer.Typer()
    app.command()(calibrate)
    arguments = [
        "table.csv", "--layers", "layers.json", "--names", "names.json", "--device", "board",
        "-o", "board.yaml", *more,
    ]  # fmt: skip
    paths = [str(inputs / a) if a.endswith((".csv", ".json", ".yaml")) else a for a in arguments]
    return CliRunner().invoke(app, paths)


def test_profile_is_written_with_the_command_that_makes_it(inputs, monkeypatch):
    monkeypatch.setenv("AUTOPRUNE_SHARED", str(inputs))
    result = run(inputs, "--alias", "b", "--capability", "int8", "--note", "first line")
    assert result.exit_code == 0, result.output
    profile = load_profile(inputs / "board.yaml")
    assert (profile.name, profile.aliases, profile.capabilities) == ("board", ("b",), ("int8",))
    assert profile.runtime_version == "tensorrt_1"
    assert profile.provenance.sample_count == 10
    assert profile.provenance.left_out == {"odd": "no layer list"}
    head = (inputs / "board.yaml").read_text().splitlines()
    assert head[:2] == ["# first line", "# Made by:"]
    assert "autoprune calibrate $AUTOPRUNE_SHARED/table.csv --layers" in head[2]
    assert "--capability int8" in head[2]


def test_error_is_printed_by_network_and_by_family(inputs):
    output = run(inputs).output
    assert "net10" in output
    assert "held-out error" in output
    assert "left out: odd: no layer list" in output
    (line,) = [line for line in output.splitlines() if line.split()[:2] == ["net", "10"]]
    assert line.rstrip().endswith("%")


def test_json_is_the_profile(inputs):
    content = json.loads(run(inputs, "--json").output)
    assert content["provenance"]["sources"][0]["commit"] == "c0ffee"
    assert "copy" in content["predictor"]["families"]


def test_table_runtime_carries_its_fusion_rules(inputs):
    assert run(inputs, "--table-runtime", "tensorrt_1=eager").exit_code == 0
    source = load_profile(inputs / "board.yaml").provenance.sources[0]
    assert (source.runtime, source.fusion) == ("tensorrt_1", "eager")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--table-device", "other"], "no row of the tables matches"),
        (["--runtime", "tensort"], "no row of the tables matches"),
        (["--table-runtime", "tensorrt_1=tensort"], "did you mean 'tensorrt'"),
        (["--capability", "teleport"], "capabilities.0"),
    ],
)
def test_bad_input_is_our_error(inputs, more, message):
    result = run(inputs, *more)
    assert isinstance(result.exception, AutopruneError)
    assert message in str(result.exception)
    assert not (inputs / "board.yaml").exists()


def test_unwritable_output_is_our_error(inputs):
    result = run(inputs, "-o", "nowhere/board.yaml")
    assert isinstance(result.exception, AutopruneError)
    assert "cannot write" in str(result.exception)
