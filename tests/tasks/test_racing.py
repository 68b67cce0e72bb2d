import numpy as np
import pytest
import torch
from torch import nn

from autoprune.tasks.base import Score, classification_score
from autoprune.tasks.classification import ArraySamples, ClassificationTask
from autoprune.tasks.racing import clearly_worse, race


def task_of(count, **options):
    rng = np.random.default_rng(0)
    pixels, labels = rng.normal(size=(count, 1, 2, 2)), rng.integers(0, 3, count)
    samples = ArraySamples(pixels, labels, mean=(0.0,), std=(1.0,))
    return ClassificationTask(
        "toy", 3, training=samples, search=samples, test=samples, search_samples=count, **options
    )


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


class Counting(nn.Module):
    """Counts the samples that pass."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def forward(self, x):
        self.seen += len(x)
        return self.model(x)


def test_scores_of_rungs_are_those_of_the_first_samples():
    task, model = task_of(1500, evaluation_batch=100), network(0)
    scores = race(task, model)
    assert [score.samples for score in scores] == [256, 1024, 1500]
    for score in scores:
        images, labels = task.search.batch(0, score.samples)
        expected = classification_score(model, [(images, labels)])
        assert score.loss == pytest.approx(expected.loss, rel=1e-5)
        assert score.loss_stderr == pytest.approx(expected.loss_stderr, rel=1e-5)
        assert score.accuracy == expected.accuracy
    assert scores[-1] == task.evaluate(model, "search")


def test_network_that_is_clearly_worse_is_scored_on_no_more_samples():
    task = task_of(1500)
    bar = tuple(Score(s.loss - 1.0, 1.0, s.samples, s.loss_stderr) for s in race(task, network(0)))
    worse, unbarred = Counting(network(0)), Counting(network(0))
    assert [score.samples for score in race(task, worse, bar)] == [256]
    assert (worse.seen, len(race(task, unbarred)), unbarred.seen) == (256, 3, 1500)


def test_network_is_stopped_at_the_first_rung_that_tells():
    task = task_of(1500)
    scores = race(task, network(0))
    # Better by three standard errors of the second rung, which are fewer of the first.
    gap = 3.0 * np.hypot(scores[1].loss_stderr, scores[1].loss_stderr)
    assert gap < 2.5 * np.hypot(scores[0].loss_stderr, scores[0].loss_stderr)
    bar = [Score(s.loss - gap, 1.0, s.samples, s.loss_stderr) for s in scores]
    assert [score.samples for score in race(task, network(0), bar)] == [256, 1024]


def test_split_without_more_samples_has_one_rung():
    assert [score.samples for score in race(task_of(256), network(0))] == [256]


@pytest.mark.parametrize(
    ("loss", "accuracy", "samples", "stderr", "worse"),
    [
        (2.0 + 2.5 * 0.5 + 0.01, 0.5, 256, 0.3, True),
        (2.0 + 2.5 * 0.5 - 0.01, 0.5, 256, 0.3, False),
        (9.0, 0.51, 256, 0.3, False),  # right more often
        (9.0, 0.5, 1024, 0.3, False),  # nothing to compare with
        (9.0, 0.5, 256, float("nan"), False),
    ],
)
def test_worse_is_by_more_than_two_and_a_half_standard_errors_on_the_same_samples(
    loss, accuracy, samples, stderr, worse
):
    assert (
        clearly_worse(Score(loss, accuracy, samples, stderr), [Score(2.0, 0.5, 256, 0.4)]) == worse
    )
