from __future__ import annotations

import itertools
import math
import types

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import TaskError
from autoprune.tasks.language import IGNORED, LanguageTask, token_scores

VOCABULARY = 7


class Bigram(nn.Module):
    """Tells the next token from the last one alone."""

    def __init__(self, *, wrapped=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        self.wrapped = wrapped

    def forward(self, tokens):
        logits = self.table[tokens]
        return types.SimpleNamespace(logits=logits) if self.wrapped else logits


def sequences(count, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, length))


def make(**options):
    splits = {"training": sequences(9, 5), "search": sequences(6, 8, 1), "test": sequences(5, 4, 2)}
    return LanguageTask("bigrams", **{**splits, **options})


def told(model, sequence):
    """Return loss and hits of each token of one sequence, one by one."""
    losses, hits = [], []
    for last, following in itertools.pairwise(sequence):
        if following == IGNORED:
            continue
        row = model.table[last].tolist()
        losses.append(math.log(sum(map(math.exp, row))) - row[following])
        hits.append(max(row) == row[following])
    return losses, hits


def test_the_score_is_the_mean_over_the_next_tokens():
    model, task = Bigram(), make()
    each = [told(model, row.tolist()) for row in task.search.tokens]
    score = task.evaluate(model, "search")
    assert score.loss == pytest.approx(np.mean([losses for losses, _ in each]), rel=1e-5)
    assert score.accuracy == pytest.approx(np.mean([hits for _, hits in each]))
    assert score.samples == 6
    spread = np.std([np.mean(losses) for losses, _ in each], ddof=1) / 6**0.5
    assert score.loss_stderr == pytest.approx(spread, rel=1e-4)


def test_padding_is_not_scored():
    model = Bigram()
    test = sequences(3, 6)
    test[0, 4:] = IGNORED
    test[2, 2:] = IGNORED
    score = make(test=test, evaluation_batch=2).evaluate(model, "test")
    each = [told(model, row.tolist()) for row in test]
    assert [len(losses) for losses, _ in each] == [3, 5, 1]
    assert score.loss == pytest.approx(np.mean([np.mean(losses) for losses, _ in each]), rel=1e-5)
    assert score.accuracy == pytest.approx(np.mean([np.mean(hits) for _, hits in each]))


def test_calibration_gives_tokens_and_what_follows_each():
    task = make(evaluation_batch=4)
    batches = task.calibration(7)
    assert [tuple(tokens.shape) for tokens, _ in batches] == [(4, 4), (3, 4)]
    for place, (tokens, targets) in enumerate(batches):
        rows = task.training.tokens[4 * place : 4 * place + 4][: len(tokens)]
        assert tokens.dtype == targets.dtype == torch.int64
        np.testing.assert_array_equal(tokens.numpy(), rows[:, :-1])
        np.testing.assert_array_equal(targets.numpy(), rows[:, 1:])
    assert sum(len(tokens) for tokens, _ in task.calibration(100)) == 9
    with pytest.raises(TaskError, match="at least one sample, not 0"):
        task.calibration(0)


def test_the_network_sees_padding_as_a_token():
    training = sequences(2, 4)
    training[1, 2:] = IGNORED
    (tokens, targets), = make(training=training).calibration(2)  # fmt: skip
    assert tokens[1].tolist() == [*training[1, :2].tolist(), 0]
    assert targets[1].tolist() == [int(training[1, 1]), IGNORED, IGNORED]


def test_the_deployment_batch_is_of_training_sequences():
    task = make(batch=11)
    (tokens,) = task.example_inputs()
    assert tokens.shape == (11, 4)
    np.testing.assert_array_equal(tokens[9:].numpy(), task.training.tokens[:2, :-1])


def test_parts_of_a_split_are_scored_in_order():
    task = make(search_samples=4)
    assert (task.samples("search"), task.samples("test")) == (4, 5)
    (tokens, _), = task.batches("search", 1, 3)  # fmt: skip
    np.testing.assert_array_equal(tokens.numpy(), task.search.tokens[1:3, :-1])


def test_models_of_transformers_return_their_logits_in_an_object():
    task = make()
    plain, wrapped = (task.evaluate(Bigram(wrapped=way), "test") for way in (False, True))
    assert plain == wrapped


def test_probabilities_of_every_position_sum_to_one():
    task, model = make(), Bigram(wrapped=True)
    (tokens, targets), = task.batches("test", 0, 5)  # fmt: skip
    found = task.log_probabilities(model(tokens))
    assert found.shape == (5, 3, VOCABULARY)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(5, 3))
    losses, _ = task.sample_scores(model(tokens), targets)
    of_targets = found.gather(2, targets[..., None])[..., 0]
    torch.testing.assert_close(losses, -of_targets.mean(1))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(2, 3), "logits of shape"),
        (torch.zeros(2, 4, VOCABULARY), "logits of shape"),
        (torch.zeros(2, 3, 4), r"the token 5, but the network has\s4 outputs"),
        (torch.full((2, 3, VOCABULARY), torch.nan), "not finite"),
        ({"logits": torch.zeros(2, 3, VOCABULARY)}, "returned dict"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(outputs, message):
    with pytest.raises(TaskError, match=message):
        token_scores(outputs, torch.tensor([[1, 5, 2], [0, 1, IGNORED]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": sequences(0, 4)}, "test split = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"search": sequences(2, 1)}, "search split has a sequence of fewer than two tokens"),
        ({"training": np.array([[3, IGNORED, 4]])}, "fewer than two tokens"),
        ({"training": np.array([[3, 1, IGNORED, 4]])}, "behind the last one only"),
        ({"training": np.array([[3, 1, -1]])}, "-100 may stand"),
    ],
)
def test_wrong_splits_are_refused(options, message):
    with pytest.raises(TaskError, match=message):
        make(**options)
