import json

import pytest
from typer.testing import CliRunner

from autoprune.cli import profile as verb
from autoprune.cli.main import app
from autoprune.errors import AutopruneError, MeasureError, SettingsError
from autoprune.latency.profile import load_profile
from autoprune.measure.backend import BACKENDS
from autoprune.measure.board import Rounds, device_name
from autoprune.testing.backends import FormulaBackend

#: Two small models of one batch, by lines that `--model` takes.
MODEL = "autoprune.network.resnet:SmallResNet(depth=8, widths=(16, 24, 32))"
OTHER = "autoprune.network.resnet:SmallResNet(depth=8, widths=(8, 16, 48))"


class Quick(FormulaBackend):
    """Makes few rounds, and assumes a channel multiple."""

    rounds = Rounds(warm_up=1, count=3, most=3)
    assumed_alignment = 4
    seconds = 0.0

    def __init__(self, **options):
        super().__init__(noise=0.002, **options)


@pytest.fixture
def quick(monkeypatch):
    """The runtime ``quick``, whose own clock measures the minutes."""
    BACKENDS["torch"]  # loads the others, so that one more does not stand alone
    monkeypatch.setitem(BACKENDS._entries, "quick", Quick)
    image = pytest.importorskip("torch").zeros(1, 3, 16, 16)
    monkeypatch.setattr("autoprune.cli.inputs.example_inputs", lambda *_: (image,))
    return "quick"


def run(*arguments):
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


def measured(tmp_path, *more):
    models = ["--model", MODEL, "--model", OTHER]
    name = ["--device", "box", "--output", tmp_path / "box.yaml", "--runtime", "quick"]
    return run(*name, *models, "--kernels", 1, "--kind", "roofline", *more)


@pytest.mark.slow
def test_machine_is_measured_fitted_and_judged(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("autoprune.measure.measuring.MOST_SUBJECTS", 8)
    result = measured(tmp_path, "--minutes", 0.1, "--title", "My Box")
    first = result.output
    assert isinstance(result.exception, MeasureError) or result.exit_code == 0, first
    # Machines differ in speed: a second run goes on until there is enough.
    for _ in range(20):
        if result.exit_code == 0:
            break
        result = measured(tmp_path, "--minutes", 0.1, "--title", "My Box")
    assert result.exit_code == 0, result.output
    assert "held-out error" in result.output
    profile = load_profile(tmp_path / "box.yaml")
    assert (profile.name, profile.device, profile.runtime) == ("box", "My Box", "eager")
    assert (profile.alignment, profile.batch, profile.precision) == (4, 1, "fp32")
    assert profile.runtime_version == "quick_1, 1 thread, wall clock"
    setup = profile.setup
    assert (setup.machine, setup.backend, setup.threads) == (device_name(), "quick", 1)
    assert len(profile.provenance.predictions) >= 4
    head = (tmp_path / "box.yaml").read_text().splitlines()
    assert any("The reference kernel spread by" in line for line in head[:4])
    assert any("autoprune profile --device box --title 'My Box' --runtime quick" in h for h in head)
    shown = CliRunner().invoke(app, ["devices", str(tmp_path / "box.yaml")])
    assert shown.exit_code == 0, shown.output
    assert "My Box" in shown.output


def test_too_little_time_keeps_what_was_measured(quick, tmp_path):
    result = measured(tmp_path, "--minutes", 0)
    assert isinstance(result.exception, MeasureError)
    assert "run again with more --minutes" in str(result.exception)
    again = measured(tmp_path, "--minutes", 0, "--threads", 2)
    assert (tmp_path / "box.measured").is_dir()
    assert isinstance(again.exception, MeasureError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --device NAME and --output FILE.yaml"),
        (["--device", "x"], "needs --device NAME and --output FILE.yaml"),
        (["--device", "x", "-o", "x.json"], "must end in .yaml"),
        (["--device", "x", "-o", "x.yaml", "--runtime", "onnx"], "did you mean"),
        (["--device", "x", "-o", "x.yaml", "--precision", "int8"], "measures in fp32"),
        (["--device", "x", "-o", "absent/x.yaml"], "cannot write"),
        (["kit", "-o", "k", "--ssh", "-oProxyCommand=ls"], "--ssh takes user@host"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert isinstance(result.exception, AutopruneError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_models_of_one_name_keep_their_full_ones():
    assert verb._names(["torchvision:resnet18", "timm:vit"]) == ["resnet18", "vit"]
    same = ["torchvision:resnet18", "timm:resnet18"]
    assert verb._names(same) == same


def test_models_of_different_batches_are_refused(monkeypatch):
    import torch
    from rich.console import Console

    images = iter([torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16)])
    monkeypatch.setattr("autoprune.cli.inputs.example_inputs", lambda *_: (next(images),))
    with pytest.raises(SettingsError, match="different batches"):
        verb.sources_of([MODEL, OTHER], Console(quiet=True))


def test_kit_is_written(quick, tmp_path):
    arguments = ["--model", MODEL, "--networks", 2, "--kernels", 1, "-o", tmp_path / "kit"]
    result = run("kit", *arguments)
    assert result.exit_code == 0, result.output
    assert "wrote 2 networks and 2 kernels" in result.output
    content = json.loads((tmp_path / "kit" / "kit.json").read_text())
    assert len(content["items"]) == 4
    again = run("kit", *arguments)
    assert "is not empty" in str(again.exception)


def test_kit_that_is_there_is_run_over_ssh(quick, tmp_path, monkeypatch):
    calls = []

    def remembered(kit, host, arguments):
        calls.append((kit.name, host.address, host.python, arguments))
        return kit / "results"

    monkeypatch.setattr("autoprune.measure.remote.run_remotely", remembered)
    arguments = ["kit", "--model", MODEL, "--networks", 1, "--kernels", 0, "-o", tmp_path / "kit"]
    remote = ["--ssh", "me@board", "--python", "py", "--arguments", "--device 'my board'"]
    assert run(*arguments, *remote).exit_code == 0
    second = run(*arguments, *remote)
    assert "using the kit" in second.output
    assert calls == [("kit", "me@board", "py", ["--device", "my board"])] * 2
