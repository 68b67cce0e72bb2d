import dataclasses
import itertools
import json
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
from autoprune.network.copies import deep_copy
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.run.finetuning import Request, finetune
from autoprune.run.finished import FinishedRun
from autoprune.run.stages import Prunings
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
    front = pd.read_csv(run / "front.csv").set_index("trial")
    assert front.loc[trial, "finetuned_accuracy"] == network.after.accuracy
    assert front.loc[trial, "finetuned_test_accuracy"] == network.after.test_accuracy
    assert front.loc[trial, "accuracy"] == network.before.accuracy
    page = (run / "report.html").read_text()
    assert f"Trial {trial} after fine-tuning: {100 * network.after.accuracy:.2f}" in page

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


ITERATIVE = Request(settings=SETTINGS, schedule="iterative:3", restart=True)


def _weights(folder):
    return safetensors.torch.load_file(folder / "network.safetensors")


def _stages(monkeypatch):
    """Return a list that fills with the stages of later fine-tunings."""
    stages = []
    for name in ("first", "after"):
        made = getattr(Prunings, name)
        monkeypatch.setattr(
            Prunings, name, lambda *a, made=made: stages.append(made(*a)) or stages[-1]
        )
    return stages


@pytest.mark.slow
def test_prunes_step_by_step_to_the_same_widths(run, trial, monkeypatch):
    stages = _stages(monkeypatch)
    (network,) = finetune(run, ITERATIVE, pick=str(trial), say=print)
    assert network.after.accuracy > network.before.accuracy
    assert network.after.macs == network.before.macs
    final = json.loads((network.folder / "plan.json").read_text())["plan"]["kept"]
    found = FinishedRun.open(run, say=print).plan(trial).kept
    assert {g: len(kept) for g, kept in final.items()} == {g: len(k) for g, k in found.items()}

    assert [stage.number for stage in stages] == [1, 2, 3]
    assert {g: list(kept) for g, kept in stages[2].plan.kept.items()} == final
    for group, kept in found.items():
        first, second, third = (set(stage.plan.kept[group]) for stage in stages)
        assert first >= second >= third
        assert len(first) > len(third) == len(kept)

    # each stage begins with what the stage before had learnt, not with the unpruned network
    history = pd.read_csv(network.folder / "history.csv")
    assert list(zip(history["stage"], history["step"], strict=True)) == [
        *((1, 0), (1, 10), (2, 10), (2, 20), (3, 20), (3, 30)),
    ]
    assert history["seconds"].is_monotonic_increasing
    loaded = autoprune.load(network.folder)
    assert sum(p.numel() for p in loaded.parameters()) == network.before.params


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [4, 10, 17, 29])
def test_a_stopped_schedule_goes_on_to_the_same_weights(run, trial, stopped):
    (whole,) = finetune(run, ITERATIVE, pick=str(trial), say=print)
    expected = _weights(whole.folder)
    steps = itertools.count(1)
    done = finetune(run, ITERATIVE, pick=str(trial), say=print,
                    stop=lambda: next(steps) == stopped)  # fmt: skip
    assert not done
    again = dataclasses.replace(ITERATIVE, restart=False)
    (network,) = finetune(run, again, pick=str(trial), say=print)
    weights = _weights(network.folder)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    # The process that another test killed may have left a temporary file.
    names = {path.name for path in network.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("network.safetensors", "plan.json", "history.csv", "finetune.json"),
    }


@pytest.mark.slow
def test_rewinds_to_earlier_weights(run, trial, tmp_path):
    """Without a step the network is the earlier one, cut: all at once, and in steps."""
    finished = FinishedRun.open(run, say=print)
    earlier = deep_copy(finished.prepared.network.model)
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter.mul_(0.5)
    file = tmp_path / "earlier.safetensors"
    safetensors.torch.save_file(earlier.state_dict(), file)
    still = SETTINGS.model_copy(update={"steps": 2, "lr_fraction": 1e-12, "ema": 0.0, "checks": 0,
                                        "weight_decay": 0.0})  # fmt: skip
    for schedule in ("one-shot", "iterative:2"):
        request = Request(settings=still, init=f"rewind:{file}", schedule=schedule, restart=True)
        (network,) = finetune(run, request, pick=str(trial), say=print)
        plan = PruningPlan.from_json(json.loads((network.folder / "plan.json").read_text())["plan"])
        expected = Surgeon(trace(earlier, finished.prepared.network.inputs)).cut(plan)
        own = dict(autoprune.load(network.folder).named_parameters())
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(own[name], parameter)


def test_schedules_that_cannot_be(run, trial, capsys):
    with pytest.raises(SettingsError, match="expected one-shot or iterative:K"):
        Request(settings=SETTINGS, schedule="iterative:1")
    with pytest.raises(SettingsError, match="one-shot, or init pruned or rewind"):
        Request(settings=SETTINGS, schedule="iterative:2", init="scratch")
    many = ["finetune", str(run), "--pick", str(trial), "--steps", "3", "--restart"]
    assert main([*many, "--schedule", "iterative:4"]) == 2
    assert "4 prunings need as many training steps" in capsys.readouterr().err


def test_bad_input_is_one_line(run, capsys):
    assert main(["finetune", str(run), "--lr-fraction", "-1", "--checks", "-2"]) == 2
    message = capsys.readouterr().err
    assert "lr_fraction" in message
    assert "checks" in message
    assert main(["finetune", str(run), "--pick", "99"]) == 2
    assert main(["finetune", str(run / "network")]) == 2
