import pytest
import torch

from autoprune.errors import SettingsError, TaskError
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import build_realiser
from autoprune.tasks.digits import digits
from autoprune.testing.networks import CLASSES, INPUT_SHAPE, tiny
from autoprune.testing.tasks import TeacherTask, taught_images
from autoprune.tuning.tune import ready, tune


@pytest.fixture
def teacher():
    return tiny("residual").model


@pytest.fixture
def task(teacher):
    return taught_images(teacher, classes=CLASSES, shape=INPUT_SHAPE)


@pytest.fixture
def pruned(teacher, task):
    network = trace(teacher, (torch.zeros(INPUT_SHAPE),))
    half = {g.name: tuple(range(0, g.size, 2)) for g in network.groups}
    return build_realiser("reconstruct", network, task.calibration(256))(PruningPlan(half))


def test_short_tuning_teaches_a_destroyed_network_real_digits_again():
    data = digits()
    teacher = ModelSource.parse("digits").build()
    network = trace(teacher, data.example_inputs())
    quarter = PruningPlan({g.name: tuple(range(0, g.size, 4)) for g in network.groups})
    cut = build_realiser("statistics", network, data.calibration(256))(quarter)
    assert data.evaluate(cut, "test").accuracy < 0.3

    tuned = tune(cut, teacher, data, steps=50, batch=32)

    assert data.evaluate(tuned, "test").accuracy > 0.8
    assert not tuned.training


def test_nothing_is_scored(pruned, teacher, task, monkeypatch):
    def forbidden(model, split):
        raise AssertionError("scored")

    monkeypatch.setattr(task, "evaluate", forbidden, raising=False)
    tune(pruned, teacher, task, steps=1)


def test_a_repaired_network_begins_training_with_what_it_computes(pruned, task):
    images = torch.cat([inputs for inputs, _ in task.calibration(256)])
    before = pruned(images)

    def apart(model):
        with torch.no_grad():
            return float((model.train()(images) - before).square().mean() / before.var())

    begun = ready(pruned, task)
    torch.testing.assert_close(begun(images), before, rtol=1e-3, atol=1e-4)
    assert apart(begun) < 1e-3
    assert apart(pruned) > 10 * apart(begun)  # its intercepts are in the running means


def test_task_without_training_data_is_refused(pruned, teacher):
    with pytest.raises(TaskError, match="'teacher' gives no batches to train on; derive it"):
        tune(pruned, teacher, TeacherTask(teacher, shape=INPUT_SHAPE), steps=1)


def test_wrong_settings_are_refused(pruned, teacher, task):
    with pytest.raises(SettingsError, match=r"steps: .*momentum"):
        tune(pruned, teacher, task, steps=0, momentum=3)
