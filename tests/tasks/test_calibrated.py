import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn

from autoprune.errors import TaskError
from autoprune.tasks.base import Score, classification_scores
from autoprune.tasks.calibrated import calibrated_score, race_calibrated
from autoprune.tasks.classification import ArraySamples, ClassificationTask

CLASSES = 5


@pytest.fixture
def logits():
    """Logits that are right more often than not, and far too sure."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=700)
    values = rng.normal(size=(700, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    return 6.0 * values.astype(np.float32), labels


def task_of(logits, labels):
    samples = ArraySamples(logits[:, :, None, None], labels, (0.0,) * CLASSES, (1.0,) * CLASSES)
    return ClassificationTask("logits", CLASSES, training=samples, search=samples, test=samples)


@pytest.fixture
def task(logits):
    return task_of(*logits)


def naive_loss(logits, labels, temperature):
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()


def test_the_loss_is_the_least_over_all_temperatures(task, logits):
    (*_, score) = race_calibrated(task, nn.Flatten())
    least = minimize_scalar(lambda t: naive_loss(*logits, np.exp(t)), bounds=(-1, 4)).fun
    assert least <= score.loss + 1e-6
    assert score.loss <= 1.003 * least
    assert score.loss < 0.5 * naive_loss(*logits, 1.0)


def test_accuracy_and_samples_are_as_ever(task):
    plain = task.evaluate(nn.Flatten(), "search")
    (*_, score) = race_calibrated(task, nn.Flatten())
    assert (score.accuracy, score.samples) == (plain.accuracy, plain.samples)


@pytest.mark.parametrize("factor", [0.2, 0.5, 2.0])
def test_how_sure_a_network_is_makes_no_difference(logits, factor):
    values, labels = logits
    scores = [race_calibrated(task_of(f * values, labels), nn.Flatten()) for f in (1.0, factor)]
    assert scores[1][-1].loss == pytest.approx(scores[0][-1].loss, rel=5e-3)


def test_a_network_that_is_surely_wrong_is_little_worse_than_guessing(logits):
    values, labels = logits
    (*_, score) = race_calibrated(task_of(-values / 6.0, labels), nn.Flatten())
    assert np.log(CLASSES) < score.loss < 1.05 * np.log(CLASSES)


def test_the_standard_error_is_that_of_the_losses_at_the_chosen_temperature(task, logits):
    values, labels = logits
    (*_, score) = race_calibrated(task, nn.Flatten())
    spread = [
        classification_scores(torch.tensor(values / t), torch.tensor(labels))[0].std().item()
        for t in np.geomspace(0.5, 32.0, 25)
    ]
    assert min(abs(s / np.sqrt(len(labels)) - score.loss_stderr) for s in spread) < 1e-7


def test_scoring_ends_where_the_loss_is_clearly_worse(task):
    scores = race_calibrated(task, nn.Flatten())
    assert [score.samples for score in scores] == [256, 700]
    bar = [dataclasses.replace(scores[0], loss=scores[0].loss / 3, accuracy=1.0)]
    assert [score.samples for score in race_calibrated(task, nn.Flatten(), bar)] == [256]


def test_batches_of_one_score_are_taken_together(task, logits):
    _, labels = logits
    score = calibrated_score(task, nn.Flatten(), task.batches("test", 0, len(labels)))
    (*_, raced) = race_calibrated(task, nn.Flatten())
    assert score == raced
    assert isinstance(score, Score)


class Pair(nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1), inputs


def test_outputs_that_are_no_logits_are_refused(task):
    with pytest.raises(TaskError, match="one tensor of logits, but it returned tuple"):
        race_calibrated(task, Pair())
