import dataclasses
import json

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from optuna.samplers import RandomSampler

import autoprune
from autoprune.errors import (
    BudgetError,
    ModelError,
    PruningError,
    RunError,
    SettingsError,
    TaskError,
)
from autoprune.latency.profile import save_profile
from autoprune.run import own_task
from autoprune.run.directory import RunDirectory
from autoprune.tasks.classification import ArraySamples, ClassificationTask
from autoprune.testing.networks import tiny
from autoprune.testing.profiles import made_up_profile
from autoprune.testing.tasks import TeacherTask

TRIALS = 6


@pytest.fixture(scope="module")
def network():
    return tiny("residual")


@pytest.fixture
def task(network):
    return TeacherTask(network.model, shape=(2, 3, 8, 8))


@pytest.fixture
def search(network, task, board, tmp_path):
    """Runs a small search in this process; keyword arguments are settings."""

    def run(task=task, **settings):
        given = {"trials": TRIALS, "executor": "inline", "output": tmp_path / "run"}
        given |= {"device": board, "sampler": "random", "precision": "fp32", **settings}
        return autoprune.search(network.model, task, **given)

    return run


@pytest.fixture(autouse=True)
def onnx_export(request, monkeypatch):
    """Write an empty file instead, which saves seconds, but where the test asks for the export."""
    if "real_onnx" in request.fixturenames:
        return
    monkeypatch.setattr(
        "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
    )


@pytest.fixture
def real_onnx():
    """Asks for the real export."""


@pytest.fixture
def dense_ms(search, tmp_path):
    """Predicted latency of the unpruned network in ms."""
    return search(trials=1, output=tmp_path / "first").dense.latency_ms


def test_finds_a_front_and_writes_every_file(search, network, task):
    result = search()

    folder = result.directory
    assert {path.name for path in folder.iterdir()} == {
        *("run.json", "study.journal", "trials.parquet", "front.csv", "front.json"),
        *("report.html", "report.json", "network"),
    }
    table = pd.read_csv(folder / "front.csv")
    assert list(table["trial"]) == list(result.front["trial"])
    assert {"trial", "accuracy", "loss", "latency_ms", "macs", "params"} <= set(table.columns)
    trials = pd.read_parquet(folder / "trials.parquet")
    assert len(trials) == TRIALS + 1
    assert (trials["status"] == "complete").all()
    # nobody beats a network of the front
    for point in result.points:
        faster = trials[trials["latency_ms"] <= point.latency_ms]
        assert faster["accuracy"].max() == point.accuracy
    assert result.dense.accuracy == 1.0  # it labelled the data
    assert f"all {TRIALS} trials are done" in result.stopped
    assert json.loads((folder / "front.json").read_text())["hypervolume"] == result.hypervolume


def test_test_split_is_used_once_for_each_reported_network(search, task):
    result = search()
    reported = {point.trial for point in result.points} | {0}

    assert task.tested == len(reported)
    assert all(point.test_accuracy is not None for point in result.points)
    assert result.dense.test_accuracy == 1.0

    autoprune.resume(result.directory, model=tiny("residual").model, task=task)
    assert task.tested == len(reported)


def test_best_network_is_the_most_accurate_under_the_budget_and_loads(
    search, network, task, dense_ms, real_onnx
):
    budget = 0.9 * dense_ms
    result = search(budget_ms=budget)

    trials = pd.read_parquet(result.directory / "trials.parquet")
    within = trials[trials["latency_ms"] <= budget]
    assert len(within) == TRIALS  # all but the unpruned network, which is not on the front
    assert result.best.accuracy == within["accuracy"].max()
    assert all(point.latency_ms <= budget for point in result.points)
    loaded = result.load_best(network.model)
    assert sum(p.numel() for p in loaded.parameters()) == result.best.params
    score = task.evaluate(loaded, "search")
    assert (score.accuracy, score.loss) == (result.best.accuracy, pytest.approx(result.best.loss))
    session = onnxruntime.InferenceSession(result.directory / "network" / "network.onnx")
    images = task.example_inputs()[0]
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(outputs, loaded(images).numpy(), atol=1e-4)


def test_same_seed_gives_the_same_run(search, tmp_path):
    first, second = (search(output=tmp_path / name) for name in ("a", "b"))
    other = search(output=tmp_path / "c", seed=1)

    losses = [
        pd.read_parquet(r.directory / "trials.parquet")["loss"] for r in (first, second, other)
    ]
    pd.testing.assert_series_equal(losses[0], losses[1])
    assert list(losses[2]) != list(losses[0])


def test_run_says_which_number_format_it_used(search, tmp_path, monkeypatch):
    monkeypatch.setattr("autoprune.tasks.numerics.native_bfloat16", lambda: True)
    for asked, used in [("auto", "bf16"), ("fp32", "fp32")]:
        found = search(trials=1, precision=asked, output=tmp_path / asked)
        assert RunDirectory.open(found.directory).record.settings.precision == used


def test_cache_spares_another_search_what_this_one_scored(search, network, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(16, 3, 8, 8))
    samples = ArraySamples(images, rng.integers(0, 2, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    with torch.no_grad():
        classes = network.model(samples.batch(0, 1)[0]).shape[1]
    splits = {"training": samples, "search": samples, "test": samples}
    task = ClassificationTask("toy", classes, **splits)

    def run(name, **settings):
        given = {"cache": str(tmp_path / "cache"), "trials": 2, **settings}
        result = search(output=tmp_path / name, task=task, **given)
        trials = RunDirectory.open(result.directory).study(RandomSampler(), say=print).trials
        losses = [trial.values[0] for trial in trials]
        return losses, [trial.user_attrs.get("cached", False) for trial in trials]

    first, second, other = run("a"), run("b"), run("c", realise="slice")
    assert first[1] == [False] * 3
    assert second == (first[0], [True] * 3)
    assert other[1] == [False] * 3


def test_resumed_run_continues_where_it_stopped(search, network, task, tmp_path):
    whole = search(output=tmp_path / "whole", trials=8)
    part = search(output=tmp_path / "part", trials=3)

    resumed = autoprune.resume(part.directory, model=network.model, task=task, trials=8)

    ours, theirs = (pd.read_parquet(r.directory / "trials.parquet") for r in (resumed, whole))
    columns = ["number", "loss", "accuracy", "latency_ms", "macs", "params", "status"]
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])
    assert RunDirectory.open(part.directory).record.settings.trials == 8


def test_resume_needs_the_objects_the_search_was_given(search, network, task):
    directory = search(trials=1).directory
    with pytest.raises(ModelError, match="pass it as model="):
        autoprune.resume(directory, task=task)
    with pytest.raises(TaskError, match="pass it as task="):
        autoprune.resume(directory, model=network.model)


def test_unreachable_budget_names_what_can_be_reached_and_leaves_nothing(search, tmp_path):
    with pytest.raises(BudgetError, match=r"meets the budget of 0\.001 ms: the fastest needs \d"):
        search(budget_ms=0.001)
    assert not (tmp_path / "run").exists()


def test_budget_that_is_already_met_is_said(search, dense_ms):
    said = []
    result = search(budget_ms=2 * dense_ms, say=said.append)

    assert any("already meets the budget" in sentence for sentence in said)
    assert result.best.trial == 0  # nothing is more accurate than the labelling network


def test_without_a_budget_the_knee_is_chosen(search):
    result = search()
    assert result.best.trial in set(result.front["trial"])


def test_unpruned_network_that_cannot_be_scored_ends_the_run(search, task):
    task.evaluate = lambda model, split: 1 / 0
    with pytest.raises(RunError, match="unpruned network cannot be scored: ZeroDivisionError"):
        search()


def test_failing_trials_are_rows_and_a_run_without_networks_has_a_report(search, task, dense_ms):
    evaluate, calls = task.evaluate, []

    def fails_later(model, split):
        calls.append(split)
        if split == "search" and len(calls) > 1:
            raise RuntimeError("out of luck")
        return evaluate(model, split)

    task.evaluate = fails_later
    result = search(budget_ms=0.9 * dense_ms)

    trials = pd.read_parquet(result.directory / "trials.parquet")
    assert list(trials["reason"][1:]) == ["RuntimeError: out of luck"] * TRIALS
    assert result.best is None
    assert (result.directory / "report.html").exists()
    with pytest.raises(RunError, match="found no network"):
        result.load_best()


def test_error_in_the_test_split_loses_nothing(search, task):
    evaluate = task.evaluate

    def no_test(model, split):
        return 1 / 0 if split == "test" else evaluate(model, split)

    task.evaluate = no_test
    said = []
    result = search(say=said.append)

    assert result.best.test_accuracy is None
    assert any("no test accuracy for trial 0: ZeroDivisionError" in line for line in said)


def test_full_disk_keeps_the_trials_and_names_the_way_on(search, network, task, tmp_path):
    def listener(progress):
        if progress.done == 3:
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"No space left.*autoprune search --resume"):
        search(listeners=[listener])

    resumed = autoprune.resume(tmp_path / "run", model=network.model, task=task)
    assert len(pd.read_parquet(resumed.directory / "trials.parquet")) == TRIALS + 1


def test_network_without_a_group_says_why(board, tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    task = TeacherTask(model, shape=(1, 3, 2, 2))
    with pytest.raises(PruningError, match=r"nothing of this network.*network output"):
        autoprune.search(model, task, device=board, output=tmp_path / "run")


def test_changed_weights_are_noticed(board, tmp_path):
    from safetensors.torch import save_file

    from autoprune.network.resnet import digits_resnet20

    weights = tmp_path / "weights.safetensors"
    save_file(digits_resnet20().state_dict(), weights)
    result = autoprune.search(
        "digits",
        device=board,
        weights=str(weights),
        trials=1,
        executor="inline",
        calibration_samples=8,
        search_samples=8,
        output=tmp_path / "run",
    )
    save_file(digits_resnet20().state_dict(), weights)  # drawn again

    with pytest.raises(RunError, match=r"weights in .*weights\.safetensors have changed"):
        autoprune.resume(result.directory)


def test_only_digits_brings_its_own_data(network):
    assert own_task("digits") == "digits"
    with pytest.raises(SettingsError, match=r"no data for the model 'Residual'.*--data"):
        own_task(network.model)


def test_result_is_plain_values(search):
    result = search(trials=1)
    content = json.loads(json.dumps(result.to_json()))
    assert content["dense"] == dataclasses.asdict(result.dense)
    assert content["directory"] == str(result.directory)


OWN_SAMPLER = """
from autoprune.strategy.rays import random_candidate
from autoprune.strategy.sampler import CandidateSampler

class Mine(CandidateSampler):
    def propose(self, study, trial, rng):
        return random_candidate(self.problem, rng)

def mine(problem, *, seed, size: int = 1):
    assert size == 5
    return Mine(problem, seed=seed)
"""


def test_own_samplers_start_warm_and_are_found_again(search, network, task, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN_SAMPLER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = search(sampler="own.py:mine", sampler_options={"size": 5}, warm_start=2, trials=3)
    record = json.loads((result.directory / "run.json").read_text())
    assert record["settings"]["sampler"] == f"{tmp_path / 'own.py'}:mine"
    assert record["settings"]["damage"] == "obs"
    monkeypatch.chdir("/")
    longer = autoprune.resume(result.directory, model=network.model, task=task, trials=4)
    assert longer.trials == result.trials + 1


def test_tied_groups_have_one_ratio_in_the_best_network(search, network, dense_ms, tmp_path):
    names = [group.name for group in network.network.groups]
    sizes = {group.name: group.size for group in network.network.groups}
    space = tmp_path / "tied.yaml"
    space.write_text("version: 1\nmultiple: 1\nties: ['*']\ndepth: false\n", encoding="utf-8")
    result = search(space=str(space), trials=4, budget_ms=0.9 * dense_ms)
    assert len(names) > 1
    plan = json.loads((result.directory / "network" / "plan.json").read_text())["plan"]
    kept = {name: len(plan["kept"].get(name, range(sizes[name]))) / sizes[name] for name in names}
    assert len(set(kept.values())) == 1
    assert max(kept.values()) < 1


@pytest.fixture
def other(tmp_path):
    """Path of another, slower device."""
    save_profile(made_up_profile(name="other", precision="fp32"), tmp_path / "other.yaml")
    return str(tmp_path / "other.yaml")


def test_three_objectives_and_limits_from_settings_to_files(search, network, task, other):
    dense = sum(p.numel() for p in network.model.parameters())
    result = search(
        objective=["accuracy", f"latency@{other}", "memory"],
        max_params=dense * 2 // 3,
        sampler="knapsack",
    )

    column = f"latency_ms@{other}"
    trials = pd.read_parquet(result.directory / "trials.parquet").set_index("number")
    assert (trials["params"].drop(0) <= dense * 2 // 3).all()
    assert trials["params"][0] == dense  # the unpruned network is over the limit, so on no front
    assert not trials["on_front"][0]
    assert (trials[column] > trials["latency_ms"]).all()
    front = trials[trials["on_front"]]
    costs = [column, "memory_mb"]
    for _, row in trials.drop(0).iterrows():  # somebody on the front is as good in everything
        as_good = (front[costs] <= row[costs]).all(axis=1) & (front["accuracy"] >= row["accuracy"])
        assert as_good.any()
    assert set(result.to_pandas().columns) >= {*costs, "params"}
    page = (result.directory / "report.html").read_text()
    assert page.count('class="plot ') >= 2
    assert "all 2 costs together" in page

    resumed = autoprune.resume(
        result.directory, model=tiny("residual").model, task=task, trials=TRIALS + 2
    )
    again = pd.read_parquet(resumed.directory / "trials.parquet").set_index("number")
    assert len(again) == TRIALS + 3
    assert again.loc[trials.index, column].tolist() == trials[column].tolist()
    study = RunDirectory.open(resumed.directory).study(RandomSampler(), say=print)
    assert [len(trial.values) for trial in study.trials] == [3] * (TRIALS + 3)
    assert study.trials[2].values[1:] == trials.loc[2, costs].tolist()


def test_without_a_budget_the_fastest_that_is_accurate_enough_is_the_best(search, tmp_path):
    first = search(sampler="knapsack", output=tmp_path / "first").directory
    reached = np.unique(pd.read_parquet(first / "trials.parquet")["accuracy"])
    least = float(reached[-2])  # the unpruned network's is the highest
    result = search(sampler="knapsack", min_accuracy=least)
    trials = pd.read_parquet(result.directory / "trials.parquet")
    enough = trials[trials["accuracy"] >= least]
    assert 2 <= len(enough) < len(trials)
    assert result.best.latency_ms == enough["latency_ms"].min()
    assert result.best.trial != 0
    assert (result.front["accuracy"] >= least).all()


def test_an_accuracy_that_nobody_reaches_is_said(search, dense_ms):
    result = search(min_accuracy=1.0, budget_ms=0.9 * dense_ms)
    assert result.best is None
    assert result.points == ()
    assert "no network within the limits reaches the accuracy of 100.0%" in result.unmet
    with pytest.raises(RunError, match="reaches the accuracy"):
        result.load_best()


def test_limits_that_nothing_meets_leave_no_folder(search, tmp_path):
    with pytest.raises(BudgetError, match="params: the least that each can be alone is"):
        search(max_params=3, output=tmp_path / "never")
    assert not (tmp_path / "never").exists()
