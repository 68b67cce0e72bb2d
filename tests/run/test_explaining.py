import dataclasses
import math

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from torch import nn

import autoprune
from autoprune.evaluation import Evaluation
from autoprune.execution.driver import Record
from autoprune.run.explaining import (
    chosen_network,
    damage_curves,
    importance,
    network_layers,
)
from autoprune.run.finished import FinishedRun
from autoprune.run.preparation import prepare
from autoprune.run.settings import RunSettings
from autoprune.strategy.damage import Damage
from autoprune.strategy.settings import SpaceSettings
from autoprune.testing.evaluators import analytic_problem
from autoprune.testing.networks import tiny
from autoprune.testing.profiles import made_up_profile
from autoprune.testing.tasks import TeacherTask


def test_layers_add_up_to_what_the_table_says(board, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
    )
    model = tiny("residual").model
    task = TeacherTask(model, shape=(2, 3, 8, 8))
    given = {"trials": 6, "executor": "inline", "sampler": "random", "precision": "fp32"}
    autoprune.search(model, task, device=board, output=tmp_path / "run", **given)
    finished = FinishedRun.open(tmp_path / "run", model=model, task=task, say=print)
    data = finished.results

    table = data.trials.set_index("number")
    assert {entry.trial for entry in data.layers} == {*data.front["number"], data.chosen.trial}
    for entry in data.layers:
        assert math.fsum(entry.kernel_ms) == pytest.approx(table["latency_ms"][entry.trial])
        plan = finished.plan(entry.trial)
        for group, kept in zip(data.chosen.widths, entry.kept, strict=True):
            if group.name in plan.kept and kept:
                assert len(plan.kept[group.name]) == kept
        weights = sum(p.numel() for p in finished.network(entry.trial).parameters())
        size = finished.directory.record.profile.bytes_per_element
        assert weights * size / 1e6 < entry.memory_mb <= data.dense_memory_mb
    (chosen,) = [entry for entry in data.layers if entry.trial == data.chosen.trial]
    assert chosen.kept == tuple(group.kept for group in data.chosen.widths)
    assert chosen.kernel_ms == tuple(kernel.chosen_ms for kernel in data.chosen.kernels)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)

    def forward(self, x):
        return x + self.outer(self.inner(x).relu())


def test_groups_of_removed_blocks_keep_nothing():
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Block(), Block(), *head).eval()
    prepared = prepare(
        RunSettings(device="here", criterion="l1", realise="slice"),
        SpaceSettings(version=1, multiple=1),
        made_up_profile(),
        model=model,
        task=TeacherTask(model, shape=(2, 3, 8, 8)),
        say=lambda sentence: None,
    )
    space = prepared.problem.space
    candidate = space.candidates(space.sizes[None], np.array([[False, True]]))[0]
    evaluation = Evaluation(
        candidate=candidate, status="complete", latency_ms=1.0, macs=1, params=1
    )
    record = Record(number=3, evaluation=evaluation)
    (layers,) = network_layers([record], prepared, bytes_per_element=4)
    found = chosen_network(layers, prepared)
    assert {width.name: width.kept for width in found.widths} == {
        "0": 8,
        "1.inner": 0,
        "2.inner": 6,
    }
    assert found.removed_blocks == ("1",)


def test_damage_curves_are_those_of_the_problem():
    problem = analytic_problem()
    assert damage_curves(problem) == ()

    known = dataclasses.replace(problem, damage=Damage.quadratic(problem.space))
    curves = damage_curves(known)

    assert [curve.name for curve in curves] == [
        dim.group for dim in problem.space.dimensions if dim.searched
    ]
    for curve in curves:
        assert len(curve.ratios) <= 33
        assert curve.ratios[0] == 0.0
        assert np.allclose(curve.damage, np.square(curve.ratios))


def study_of(losses_of, count=40):
    study = optuna.create_study(directions=["minimize", "minimize"])
    rng = np.random.default_rng(0)
    spaces = {f"ratio/{name}": FloatDistribution(0.0, 1.0) for name in "abc"}
    spaces["drop/d"] = CategoricalDistribution([False, True])
    for _ in range(count):
        params = {name: float(rng.random()) for name in list(spaces)[:3]}
        params["drop/d"] = bool(rng.random() < 0.5)
        values = [losses_of(params), 1.0]
        study.add_trial(create_trial(params=params, distributions=spaces, values=values))
    return study


def test_what_decides_the_loss_is_important():
    found = importance(study_of(lambda p: math.exp(4 * p["ratio/b"] + p["ratio/a"])), seconds=60.0)

    assert found.trials == 40
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert next(iter(found.shares)) == "ratio/b"
    assert found.shares["ratio/b"] > 0.7
    assert found.shares["drop/d"] < 0.1


def test_it_ends_where_the_time_is_up():
    study = study_of(lambda p: 1 + p["ratio/a"], count=70)

    assert importance(study, seconds=0.0).trials == 32


@pytest.mark.parametrize("count", [10, 40])
def test_too_little_says_nothing(count):
    assert importance(study_of(lambda p: 0.5, count=count), seconds=1.0) is None
