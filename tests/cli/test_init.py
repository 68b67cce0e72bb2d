import os

import pytest

from autoprune.cli.main import main
from autoprune.run.settings import RunSettings
from autoprune.run.settings_file import read_settings


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_init_wrote_is_what_a_search_does_by_default(folder, capsys):
    assert main(["init", "--device", "jetson"]) == 0
    out = capsys.readouterr().out
    assert "wrote run.yaml" in out
    assert "autoprune search -c run.yaml" in out
    written = RunSettings.checked(read_settings(folder / "run.yaml"))
    assert written == RunSettings.checked({"device": "jetson"})


def test_what_is_given_is_in_the_file(folder):
    options = ["--model", "torchvision:resnet18", "--data", "image-folder:photos?size=64"]
    limits = ["--budget-ms", "3.5", "--trials", "9", "--set", "search.sampler_options.anchors=4"]
    assert main(["init", "mine.yaml", *options, "--device", "jetson", *limits]) == 0
    assert read_settings(folder / "mine.yaml") == {
        "model": "torchvision:resnet18",
        "data": "image-folder:photos?size=64",
        "device": "jetson",
        "budget_ms": 3.5,
        "trials": 9,
        "sampler_options": {"anchors": 4},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "device: missing; `autoprune devices` lists the devices"),
        (["--device", "jetsn"], "did you mean 'jetson'"),
        (["--device", "jetson", "--set", "search.trails=3"], "did you mean 'trials'"),
        (["--device", "jetson", "--set", "search.trials=0"], "trials: "),
        (["--device", "jetson", "--model", "torchvision:resnet18"], "no data for the model"),
        (["--device", "jetson", "--weights", "no.pt"], "there is no weights file"),
        (["nowhere/run.yaml", "--device", "jetson"], "cannot write nowhere/run.yaml"),
    ],
)
def test_nothing_is_written_where_something_is_wrong(folder, capsys, arguments, message):
    assert main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(folder) == []


def test_a_file_is_not_overwritten_unless_it_is_asked_for(folder, capsys):
    (folder / "run.yaml").write_text("mine")
    assert main(["init", "--device", "jetson"]) == 2
    assert "run.yaml exists; give another name, or --force" in capsys.readouterr().err
    assert (folder / "run.yaml").read_text() == "mine"
    assert main(["init", "--device", "jetson", "--force"]) == 0
    assert read_settings(folder / "run.yaml")["device"] == "jetson"


def test_in_a_terminal_it_asks_and_asks_again(folder, terminal):
    with terminal() as shown:
        # Model by default; a device that there is not; another; no budget limit; trials.
        os.write(shown.master, b"\njetsn\njetson_tx2\n4.5\n\n")
        assert main(["init"]) == 0
    assert "did you mean" in shown.text
    assert read_settings(folder / "run.yaml") == {
        "model": "digits",
        "data": "digits",
        "device": "jetson_tx2",
        "budget_ms": 4.5,
        "trials": 50,
    }


def test_in_a_terminal_data_are_asked_for_where_the_model_brings_none(folder, terminal):
    with terminal() as shown:
        os.write(shown.master, b"torchvision:resnet18\n\nimage-folder:photos\n\n\n20\n")
        assert main(["init"]) == 0
    values = read_settings(folder / "run.yaml")
    assert values["data"] == "image-folder:photos"
    assert values["trials"] == 20
    assert "weights" not in values


def test_questions_have_an_end(folder, terminal, capsys):
    with terminal() as shown:
        os.write(shown.master, b"\n" + b"nothing\n" * 9)
        assert main(["init"]) == 2
    assert "give it as an option instead" in shown.text
    assert os.listdir(folder) == []
