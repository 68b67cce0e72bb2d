import json
import pickle
import re
import shlex
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch

from autoprune.cli.main import main
from autoprune.network.resnet import digits_resnet20
from autoprune.run.directory import RunDirectory
from autoprune.strategy.settings import load_space_settings
from autoprune.testing.profiles import made_up_profile

QUICK = ("--executor", "inline", "--sampler", "random", "--trials", "2")


pytestmark = pytest.mark.usefixtures("no_onnx_export")


@pytest.fixture
def autoprune(board, capsys, own):
    """Runs ``autoprune search`` on the made-up board; returns exit code, stdout and stderr."""

    def run(*arguments, device=board):
        given = ["search", *map(str, arguments)]
        code = main([*given, "--device", device] if device else given)
        return code, *capsys.readouterr()

    return run


SMALL = ("own.py:net", "--data", "own.py:task")


def test_whole_search_prints_result_files_and_what_to_do_next(autoprune, tmp_path):
    code, out, err = autoprune(*QUICK, *SMALL, "--output", tmp_path / "run")

    assert code == 0
    assert "2/2 trials" in err
    words = " ".join(out.replace("\N{NO-BREAK SPACE}", " ").split())
    assert "latency on made_up, ±10 %" in words
    for line in ("accuracy, search split", "accuracy, test split", "MACs", "parameters"):
        assert line in words
    assert "run/report.html" in out
    assert f"autoprune.load('{tmp_path / 'run' / 'network'}', trust_source=True)" in out
    assert "autoprune search --resume run --trials 4" in out


def test_json_goes_alone_to_stdout(autoprune, tmp_path):
    code, out, _ = autoprune(*QUICK, *SMALL, "--json", "--output", tmp_path / "run")
    assert code == 0
    result = json.loads(out)
    assert result["directory"] == str(tmp_path / "run")
    assert [p["trial"] for p in result["points"]] == list(
        pd.read_csv(tmp_path / "run" / "front.csv")["trial"]
    )


def test_quiet_prints_the_run_directory_alone(autoprune, tmp_path):
    code, out, err = autoprune(*QUICK, *SMALL, "--quiet")
    assert (code, err) == (0, "")
    assert RunDirectory.open(out.strip()).path.parent == tmp_path / "runs"


def test_resume_and_report_of_a_finished_run(autoprune, tmp_path, capsys):
    autoprune(*QUICK, *SMALL, "--output", tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    first = page.read_text()

    code, _, err = autoprune("--resume", tmp_path / "run", "--trials", 3, device=None)
    assert code == 0
    assert "3/3 trials" in err
    assert page.read_text() != first

    page.unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "<html" in page.read_text()


# --- settings from files ------------------------------------------------------------------------


def test_settings_come_from_a_file_then_from_set_then_from_options(autoprune, tmp_path, board):
    (tmp_path / "run.yaml").write_text(
        f"version: 1\nsearch:\n  model: own.py:net\n  data: own.py:task\n  device: {board}\n"
        "  executor: inline\n  sampler: random\n  trials: 9\n  seed: 1\n  warm_start: 1\n"
    )
    given = ["-c", "run.yaml", "--set", "search.trials=2", "--set", "seed=2", "--seed", "3"]
    code, _, _ = autoprune(*given, "-o", "run", device=None)
    assert code == 0
    settings = RunDirectory.open(tmp_path / "run").record.settings
    assert (settings.warm_start, settings.trials, settings.seed) == (1, 2, 3)

    # A finished run's own settings are such a file, and give the same networks.
    code, _, _ = autoprune("-c", "run", "-o", "again", device=None)
    assert code == 0
    assert RunDirectory.open(tmp_path / "again").record.settings == settings
    first, second = (pd.read_csv(tmp_path / name / "front.csv") for name in ("run", "again"))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "absent.yaml"], "absent.yaml: cannot be read"),
        (["--set", "search.trails=3"], "no setting named 'trails'; did you mean 'trials'"),
        (["--resume", "run", "-c", "run.yaml"], "--resume continues a run with its own settings"),
        (["--progress", "live", "--quiet"], "give --quiet or --progress live, not both"),
    ],
)
def test_wrong_files_and_assignments(autoprune, arguments, message):
    code, out, err = autoprune(*arguments, device=None)
    assert (code, out) == (2, "")
    assert message in err


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvison:resnet18", "--data", "digits"], "did you mean 'torchvision'"),
        (["torchvision:resnet81", "--data", "digits"], "did you mean 'resnet18'"),
        (["--sampler", "tpa"], "no sampler named 'tpa'; did you mean 'tpe'"),
        (["--sampler", "optuna.samplers:QMC"], "has nothing called 'QMC'"),
        (["--sampler-option", "size"], "'size' is not of the form name=value"),
        (["--sampler-option", "size=1"], "no option 'size'"),
        (["--criterion", "l3"], "no criterion named 'l3'; did you mean 'l2'"),
        (["--data", "digit"], "no task named 'digit'; did you mean 'digits'"),
        (["--space", "defalt"], "no search space named 'defalt'; did you mean 'default'"),
        (["torchvision:resnet18"], "no data for the model 'torchvision:resnet18'"),
        (["digits", "--model", "digits"], "two models were given"),
        (["--budget-ms", "0.001", "--batch", "4"], "meets the budget of 0.001 ms: the fastest"),
        (["--budget-ms", "-3", "--trials", "0"], "2 settings are wrong"),
        (["--weights", "nowhere.pt"], "there is no weights file"),
        (["--resume", "nowhere"], "give the folder that `autoprune search` wrote"),
    ],
)
def test_wrong_arguments(autoprune, tmp_path, arguments, message):
    device = {"device": None} if "--resume" in arguments else {}
    code, out, err = autoprune(*arguments, **device)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert not list(tmp_path.rglob("run.json"))


def test_unknown_device_offers_the_nearest(autoprune):
    code, _, err = autoprune(device="jetsn")
    assert code == 2
    assert "no device profile named 'jetsn'; did you mean 'jetson'?" in err


def test_device_must_be_given(autoprune):
    code, _, err = autoprune(device=None)
    assert code == 2
    assert "device: missing; `autoprune devices` lists the devices" in err


def test_malformed_space_lists_every_fault(autoprune, tmp_path):
    (tmp_path / "space.yaml").write_text("version: 1\nmax_ratoi: 0.5\nminimum_units: 0\n")
    code, _, err = autoprune("--space", "space.yaml")
    assert code == 2
    assert "max_ratoi: unknown key; did you mean 'max_ratio'" in err
    assert "minimum_units:" in err


def test_malformed_profile_lists_every_fault(autoprune, tmp_path):
    content = made_up_profile().model_dump(mode="json", by_alias=True)
    del content["provenance"]
    content["colour"] = "green"
    (tmp_path / "board.yaml").write_text(json.dumps(content))  # JSON is YAML
    code, _, err = autoprune(device=str(tmp_path / "board.yaml"))
    assert code == 2
    assert "provenance: Field required" in err
    assert "colour:" in err


class Code:
    """Unpickles to a call."""

    def __reduce__(self):
        return (print, ("this ran",))


@pytest.mark.parametrize("fault", ["mismatch", "truncated", "code"])
def test_weights_that_cannot_be_used(autoprune, tmp_path, fault):
    file = tmp_path / "weights.pt"
    state = digits_resnet20().state_dict()
    if fault == "mismatch":
        state["fc.weight"] = torch.zeros(7, 64)
    torch.save(state, file)
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    if fault == "code":
        file.write_bytes(pickle.dumps(Code()))

    code, out, err = autoprune("--weights", file)

    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "weights.pt" in err
    if fault == "mismatch":
        assert "fc.weight" in err


def test_output_that_cannot_be_written(autoprune, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = autoprune("--output", tmp_path / "file" / "run")
    assert code == 2
    assert "cannot write the output folder" in err


def test_run_of_another_version(autoprune, tmp_path):
    (tmp_path / "run.json").write_text('{"format": "autoprune-run", "version": 9}')
    code, _, err = autoprune("--resume", tmp_path, device=None)
    assert code == 2
    assert "version 9" in err
    assert "start a new run" in err


def test_resume_takes_no_other_settings(autoprune, tmp_path):
    code, _, err = autoprune("--resume", tmp_path, "--sampler", "tpe", "--seed", 3, device=None)
    assert code == 2
    assert "--sampler, --seed cannot be given" in err


def test_run_without_results_has_no_report(board, tmp_path, capsys):
    from autoprune.run.directory import ModelRecord, RunRecord, now, versions
    from autoprune.run.settings import RunSettings

    record = RunRecord(
        created=now(),
        settings=RunSettings.checked({"device": board}),
        model=ModelRecord(name="digits", weights_sha256=None),
        space=load_space_settings("default"),
        profile=made_up_profile(),
        versions=versions(),
    )
    RunDirectory(tmp_path, record).write_record()
    assert main(["report", str(tmp_path)]) == 2
    assert "no results yet; finish the search with `autoprune search --resume" in (
        capsys.readouterr().err
    )


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_keeps_finished_trials_and_prints_a_command_that_works(own, board, tmp_path):
    options = [
        "--sampler",
        "random",
        "--device",
        board,
        "--trials",
        "5000",
        "--output",
        str(tmp_path / "run"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "autoprune.cli.main", "search", *own, *options, "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        done = re.match(r"(\d+)/5000 trials", line)
        if done and int(done[1]) >= 3:
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)

    assert process.returncode == 143
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "ray").exists()
    resume = shlex.split(err.strip().splitlines()[-1])
    assert resume[:3] == ["autoprune", "search", "--resume"]

    before = _finished(tmp_path / "run")
    assert len(before) >= 4  # three and the unpruned network
    assert main([*resume[1:], "--trials", str(len(before) + 1), "--quiet"]) == 0
    trials = pd.read_parquet(tmp_path / "run" / "trials.parquet").set_index("number")
    assert trials.loc[list(before), "loss"].to_dict() == before
    assert sum(trials["reason"] == "interrupted") <= 1
    # Beside what was asked for: the unpruned network, copies, and what was interrupted.
    assert sum(trials["reason"] == "") == len(before) + 1


def _finished(folder):
    """Return the loss of every complete trial by number."""
    import optuna

    study = optuna.load_study(
        study_name="autoprune",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
        ),
    )
    complete = (optuna.trial.TrialState.COMPLETE,)
    return {trial.number: trial.values[0] for trial in study.get_trials(states=complete)}


def test_goals_go_from_the_command_line_into_the_run(autoprune, tmp_path):
    code, out, _ = autoprune(
        *QUICK, *SMALL, "--output", tmp_path / "run",
        "--objective", "accuracy,latency,memory", "--max-params", "20k",
    )  # fmt: skip
    assert code == 0
    assert "memory" in out
    settings = RunDirectory.open(tmp_path / "run").record.settings
    assert settings.objective == ("accuracy", "latency", "memory")
    assert settings.max_params == 20_000
    assert "memory_mb" in pd.read_csv(tmp_path / "run" / "front.csv").columns


def test_no_network_as_accurate_as_asked_for_is_exit_code_1(autoprune):
    code, out, _ = autoprune(*QUICK, *SMALL, "--min-accuracy", "1.0", "--max-macs", "100k")
    assert code == 1
    assert "reaches the accuracy of 100.0%" in out


def test_limits_that_cannot_be_met_are_exit_code_2(autoprune, board):
    code, _, err = autoprune(*QUICK, *SMALL, "--max-latency-ms", f"0.001@{board}")
    assert code == 2
    assert "0.001 ms latency" in err
    assert "the least that each can be alone is" in err
