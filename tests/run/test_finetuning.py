import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import safetensors.torch
import torch

import autoprune
from autoprune.cli.main import main
from autoprune.errors import RunError, SettingsError
from autoprune.run.finetuning import Request, finetune
from autoprune.tuning.settings import TuneSettings

SETTINGS = TuneSettings(steps=30, batch=16, checks=3, samples=256)


@pytest.fixture(scope="module")
def run(board, tmp_path_factory):
    """A search of the embedded task whose one pruned network is destroyed by slicing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    autoprune.search(
        device=board, trials=2, sampler="random", executor="inline", realise="statistics",
        search_samples=64, output=folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trial(run):
    return int(pd.read_csv(run / "front.csv")["trial"].iloc[0])


@pytest.mark.slow
def test_network_is_better_written_and_scored_once(run, trial):
    heard = []
    (network,) = finetune(
        run,
        Request(settings=SETTINGS),
        pick=str(trial),
        listener=lambda trial, progress: heard.append((trial, progress.step)),
        say=print,
    )
    assert heard == [(trial, step) for step in range(1, 31)]
    assert network.after.accuracy > network.before.accuracy
    loaded = autoprune.load(network.folder)
    assert sum(p.numel() for p in loaded.parameters()) == network.before.params
    assert {path.name for path in network.folder.iterdir()} == {
        *("network.safetensors", "plan.json", "history.csv", "finetune.json"),
    }
    history = pd.read_csv(network.folder / "history.csv")
    assert list(history["step"]) == [0, 10, 20, 30]
    table = pd.read_csv(run / "finetuned" / "finetuned.csv")
    assert table["finetuned_accuracy"].item() == network.after.accuracy
    assert table["finetuned_test_accuracy"].item() == network.after.test_accuracy

    # asked again, nothing is done; asked otherwise, it is refused
    again = finetune(run, Request(settings=SETTINGS), pick=str(trial), say=print,
                     stop=lambda: pytest.fail("trained"))  # fmt: skip
    assert again == (network,)
    other = SETTINGS.model_copy(update={"seed": 5})
    with pytest.raises(RunError, match=r"other settings.*--restart"):
        finetune(run, Request(settings=other), pick=str(trial), say=print)
    (fresh,) = finetune(run, Request(settings=other, restart=True), pick=str(trial), say=print)
    assert fresh.folder == network.folder


@pytest.mark.slow
def test_a_killed_fine_tuning_goes_on_to_the_same_weights(run, trial, tmp_path):
    """SIGKILL at a random time: after any step, in a checkpoint, in a score."""

    def weights(folder):
        return safetensors.torch.load_file(
            folder / "finetuned" / str(trial) / "network.safetensors"
        )

    request = Request(settings=SETTINGS, restart=True)
    finetune(run, request, pick=str(trial), say=print)
    whole = weights(run)
    command = [
        *(sys.executable, "-m", "autoprune.cli.main", "finetune", str(run), "--pick", str(trial)),
        *("--steps", "30", "--batch", "16", "--checks", "3", "--samples", "256"),
        *("--checkpoint-minutes", "0"),
    ]
    process = subprocess.Popen([*command, "--restart"], stderr=subprocess.DEVNULL)
    checkpoint = run / "finetuned" / str(trial) / "checkpoint.safetensors"
    for _ in range(6000):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.01)
    time.sleep(float(torch.rand(())) * 0.5)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()

    assert main(command[3:]) == 0

    rest = weights(run)
    assert whole.keys() == rest.keys()
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


@pytest.mark.slow
def test_other_beginnings(run, trial):
    short = SETTINGS.model_copy(update={"steps": 2, "checks": 1})
    scratch = Request(settings=short, init="scratch", restart=True)
    (network,) = finetune(run, scratch, pick=str(trial), say=print)
    assert network.after.accuracy < 0.6  # two steps teach nothing
    with pytest.raises(SettingsError, match="expected pruned, scratch or rewind:FILE"):
        Request(settings=short, init="lottery")


def test_bad_input_is_one_line(run, capsys):
    assert main(["finetune", str(run), "--lr-fraction", "-1", "--checks", "-2"]) == 2
    message = capsys.readouterr().err
    assert "lr_fraction" in message
    assert "checks" in message
    assert main(["finetune", str(run), "--pick", "99"]) == 2
    assert main(["finetune", str(run / "network")]) == 2
