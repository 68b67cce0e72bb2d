import dataclasses

import numpy as np
import pytest
import torch

from autoprune.errors import SettingsError, TaskError
from autoprune.evaluation import Evaluator
from autoprune.execution.fidelity import TunedEvaluator, rung_names, rung_steps
from autoprune.network.trace import trace
from autoprune.strategy.problem import Problem
from autoprune.strategy.space import Candidate, Dimension, SearchSpace
from autoprune.testing.evaluators import LinearLatency
from autoprune.testing.networks import CLASSES, INPUT_SHAPE, tiny
from autoprune.testing.tasks import TeacherTask, taught_images
from autoprune.tuning.settings import TuneSettings
from autoprune.tuning.tune import tune

TUNING = TuneSettings(batch=16, precision="fp32", seed=7)


@pytest.fixture(scope="module")
def subject():
    model = tiny("residual").model
    network = trace(model, (torch.zeros(INPUT_SHAPE),))
    task = taught_images(model, classes=CLASSES, shape=INPUT_SHAPE)
    dimensions = tuple(Dimension(group.name, group.size, 1) for group in network.groups)
    names = tuple(block.name for block in network.blocks)
    space = SearchSpace(dimensions, names, (True,) * len(names))
    return network, task, Problem(space, LinearLatency())


def evaluators(subject, folder, rungs=("5", "12")):
    network, task, problem = subject
    rng = np.random.default_rng(0)
    options = {
        "problem": problem,
        "scores": {group.name: rng.random(group.size) for group in network.groups},
        "calibration_samples": 32,
    }
    plain = Evaluator(network, task, **options)
    tuned = TunedEvaluator(
        network, task, **options, rungs=rungs, checkpoints=folder / "rungs", tuning=TUNING
    )
    return plain, tuned


def half(problem, rung=0):
    space = problem.space
    candidate = Candidate((0.5,) * len(space.dimensions), (False,) * len(space.blocks))
    return dataclasses.replace(space.snap(candidate), rung=rung)


def same(one, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_rungs_are_trained_one_after_the_other(subject, tmp_path):
    network, task, problem = subject
    plain, tuned = evaluators(subject, tmp_path)
    begun = plain.build(half(problem))
    assert same(tuned.build(half(problem)), begun)

    options = TUNING.model_dump(exclude={"steps", "checks", "seed", "features"})
    first = tune(begun, network.model, task, steps=5, seed=8, **options)
    second = tune(first, network.model, task, steps=7, seed=9, **options)
    assert same(tuned.build(half(problem, 1)), first)
    found, theirs = tuned.build(half(problem, 2)).state_dict(), second.state_dict()
    for name, tensor in first.state_dict().items():  # weights in a file have another layout
        torch.testing.assert_close(found[name], theirs[name], rtol=1e-3, atol=1e-5)
        assert name.endswith("num_batches_tracked") or not torch.allclose(tensor, theirs[name])


def test_networks_go_on_from_checkpoints_and_do_without(subject, tmp_path, monkeypatch):
    _, _, problem = subject
    _, tuned = evaluators(subject, tmp_path)
    steps = []

    def counted(*arguments, **options):
        steps.append(options["steps"])
        return tune(*arguments, **options)

    monkeypatch.setattr("autoprune.execution.fidelity.tune", counted)
    tuned.build(half(problem, 1))
    last = tuned.build(half(problem, 2))
    assert steps == [5, 7]  # the second went on
    assert same(tuned.build(half(problem, 2)), last)
    assert steps == [5, 7]  # nothing is trained twice

    _, elsewhere = evaluators(subject, tmp_path / "other node")
    assert same(elsewhere.build(half(problem, 2)), last)
    assert steps == [5, 7, 5, 7]


def test_trained_network_is_scored_and_better(subject, tmp_path):
    _, task, problem = subject
    _, tuned = evaluators(subject, tmp_path, rungs=("60",))
    before, after = (tuned(half(problem, rung)) for rung in (0, 1))
    assert (before.status, after.status) == ("complete", "complete")
    assert after.loss < before.loss
    assert after.candidate.rung == 1
    assert (after.latency_ms, after.params) == (before.latency_ms, before.params)
    score = task.evaluate(tuned.build(half(problem, 1)), "search")
    assert score.loss == pytest.approx(after.loss)


def test_steps_of_rungs(subject):
    _, task, _ = subject
    per_epoch = task.training_samples() // 16
    assert rung_names("40, 200,2ep") == ("40", "200", "2ep")
    assert rung_steps(("1", "2ep"), task, batch=16) == (1, 2 * per_epoch)
    with pytest.raises(SettingsError, match=r"from rung to rung, got \[40, 40\] steps"):
        rung_steps(("40", "40"), task, batch=16)
    for wrong in ("0", "4,x", "ep", "4,,5"):
        with pytest.raises(ValueError, match=r"expected steps such as 200 or epochs such as 1.5ep"):
            rung_names(wrong)


def test_task_without_training_is_refused_at_once(subject, tmp_path):
    network, _, problem = subject
    untaught = network, TeacherTask(network.model, shape=INPUT_SHAPE), problem
    with pytest.raises(TaskError, match="no batches to train on"):
        evaluators(untaught, tmp_path)
