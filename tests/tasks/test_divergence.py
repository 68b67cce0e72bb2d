import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.tasks import divergence as module
from autoprune.tasks.base import SampledTask
from autoprune.tasks.divergence import Divergence, divergence

TOKENS, WORDS = 5, 7


class Sequences(SampledTask):
    """Token sequences; a sample's loss is the mean over its tokens."""

    name = "sequences"

    def __init__(self, count=300):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, WORDS, (count, TOKENS + 1), generator=generator)

    def example_inputs(self):
        return (self.tokens[:2, :-1],)

    def calibration(self, samples):
        return list(self.batches("search", 0, samples))

    def samples(self, split):
        return len(self.tokens)

    def batches(self, split, start, stop):
        for first in range(start, stop, 64):
            part = self.tokens[first : min(first + 64, stop)]
            yield part[:, :-1], part[:, 1:]

    def sample_scores(self, outputs, targets):
        losses = F.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none").mean(1)
        return losses, (outputs.argmax(-1) == targets).float().mean(1)

    def log_probabilities(self, outputs):
        return outputs.log_softmax(-1)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(WORDS, 4), nn.Linear(4, WORDS))


def naive(task, dense, other):
    values = []
    for inputs, _ in task.batches("search", 0, task.samples("search")):
        p, q = (net(inputs).softmax(-1).tolist() for net in (dense, other))
        for sample_p, sample_q in zip(p, q, strict=True):
            total = sum(
                a * math.log(a / b)
                for row_p, row_q in zip(sample_p, sample_q, strict=True)
                for a, b in zip(row_p, row_q, strict=True)
            )
            values.append(total / TOKENS)
    return values


@pytest.mark.parametrize("kept", [2**28, 0])
def test_equals_the_definition_written_out_for_sequences(kept, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    task, dense, other = Sequences(), network(0), network(1)
    scores = Divergence(task, dense).race(other)
    values = naive(task, dense, other)
    assert [score.samples for score in scores] == [256, 300]
    assert scores[0].loss == pytest.approx(sum(values[:256]) / 256, rel=1e-4)
    assert scores[1].loss == pytest.approx(sum(values) / 300, rel=1e-4)
    assert scores[1].accuracy == pytest.approx(task.evaluate(other, "search").accuracy)
    assert Divergence(task, dense).race(dense)[-1].loss == 0.0


def test_reads_no_labels():
    task, other = Sequences(), network(1)
    found = Divergence(task, network(0)).race(other)[-1].loss
    shuffled = Sequences()
    shuffled.batches = lambda *a: ((x, y.flip(0)) for x, y in Sequences.batches(task, *a))
    assert Divergence(shuffled, network(0)).race(other)[-1].loss == found


def test_stops_where_it_is_clearly_worse_than_the_bar():
    task, dense = Sequences(), network(0)
    scorer = Divergence(task, dense)
    bar = [dataclasses.replace(score, accuracy=1.0) for score in scorer.race(dense)]
    assert [s.samples for s in scorer.race(network(1), bar)] == [256]


def test_impossible_classes_add_nothing():
    impossible = torch.tensor([[0.0, -math.inf]])
    assert divergence(impossible, impossible).item() == 0.0
    assert divergence(impossible, torch.tensor([[0.5, 0.5]]).log()).item() == pytest.approx(
        math.log(2)
    )
