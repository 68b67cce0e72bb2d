from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import TaskError
from autoprune.tasks.classification import ArraySamples, ClassificationTask, normalised


def _samples(count, *, value=0):
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 256, (count, 2, 4, 4), dtype=np.uint8)
    pixels[:, 0, 0, 0] = value
    return ArraySamples(pixels, np.arange(count) % 3, mean=(10.0, 20.0), std=(2.0, 4.0))


def _task(**options):
    defaults = {"training": _samples(30), "search": _samples(12), "test": _samples(9)}
    return ClassificationTask("toy", 3, **{**defaults, **options})


def _model():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 3))


def test_pixels_are_normalised_per_channel_in_float32():
    pixels = np.array([[[[10, 12]], [[20, 28]]]], np.uint8)
    images = normalised(pixels, (10.0, 20.0), (2.0, 4.0))
    assert images.dtype == torch.float32
    assert images.flatten().tolist() == [0.0, 1.0, 0.0, 2.0]


def test_read_only_arrays_give_writable_batches_without_a_warning():
    samples = _samples(4)
    samples.pixels.flags.writeable = False
    samples.targets.flags.writeable = False
    before = samples.pixels.copy()
    images, targets = samples.batch(0, 4)
    images.zero_()
    targets.zero_()
    assert (samples.pixels == before).all()
    assert samples.targets.tolist() == [0, 1, 2, 0]


def test_example_inputs_are_the_first_training_images_repeated_to_the_batch():
    task = _task(batch=40)
    (inputs,) = task.example_inputs()
    images, _ = task.training.batch(0, 30)
    assert torch.equal(inputs, torch.cat([images, images[:10]]))


def test_calibration_is_a_prefix_of_the_training_split_in_batches():
    task = _task(evaluation_batch=8)
    batches = task.calibration(20)
    assert [len(targets) for _, targets in batches] == [8, 8, 4]
    images, targets = task.training.batch(0, 20)
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images)
    assert torch.equal(torch.cat([batch for _, batch in batches]), targets)
    assert sum(len(targets) for _, targets in task.calibration(1000)) == 30


def test_the_search_uses_its_own_samples_up_to_the_limit_and_test_uses_all():
    model = _model()
    limited, whole = _task(search_samples=5), _task()
    assert limited.evaluate(model, "search").samples == 5
    assert whole.evaluate(model, "search").samples == 12
    assert limited.evaluate(model, "test").samples == 9
    assert limited.evaluate(model, "test") == whole.evaluate(model, "test")


def test_the_score_does_not_depend_on_how_the_split_is_batched():
    model = _model()
    one, many = _task(evaluation_batch=12), _task(evaluation_batch=5)
    first, second = one.evaluate(model, "search"), many.evaluate(model, "search")
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    assert second.accuracy == first.accuracy


def test_a_task_survives_pickling():
    task, model = _task(), _model()
    copy = pickle.loads(pickle.dumps(task))  # noqa: S301 - made one call earlier
    assert copy.evaluate(model, "search") == task.evaluate(model, "search")
    assert torch.equal(copy.example_inputs()[0], task.example_inputs()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch = 0"),
        ({"search_samples": -1, "batch": 0}, "batch = 0, search_samples = -1"),
        ({"search": _samples(0)}, "toy's search split = 0"),
    ],
)
def test_empty_splits_and_numbers_below_one_are_all_named(options, message):
    with pytest.raises(TaskError, match=message):
        _task(**options)


def test_calibration_needs_samples():
    with pytest.raises(TaskError, match="at least one sample, not 0"):
        _task().calibration(0)


def test_a_network_for_other_classes_is_refused():
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(32, 1000))
    with pytest.raises(TaskError, match="3 classes, but the network has 1000 outputs"):
        _task().evaluate(wrong, "search")


def test_samples_one_by_one_are_the_whole_split_in_order():
    task, model = _task(evaluation_batch=5, search_samples=11), _model().requires_grad_(False)
    inputs, targets = (torch.cat(c) for c in zip(*task.batches("search", 2, 9), strict=True))
    images, labels = task.search.batch(2, 9)
    assert torch.equal(inputs, images)
    assert torch.equal(targets, labels)
    whole, classes = task.search.batch(0, task.samples("search"))
    losses, correct = task.sample_scores(model(whole), classes)
    score = task.evaluate(model, "search")
    assert (score.samples, len(losses)) == (11, 11)
    assert score.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert score.accuracy == pytest.approx(float(correct.mean()))
    logs = task.log_probabilities(model(whole))
    assert logs.exp().sum(dim=1).tolist() == pytest.approx([1.0] * len(logs), rel=1e-5)
    assert losses.tolist() == pytest.approx(
        [-row[c] for row, c in zip(logs.tolist(), classes.tolist(), strict=True)],
        rel=1e-4,
        abs=1e-5,
    )
