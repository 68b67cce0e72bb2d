from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autoprune.errors import TaskError
from autoprune.tasks.base import Score, classification_score, reference_inputs


class _Returns(nn.Module):
    """Gives the same output whatever comes in."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x) if callable(self.output) else self.output


def test_score_equals_the_definition_written_out_over_uneven_batches():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 4, generator=generator)
    targets = torch.randint(0, 3, (10,), generator=generator)
    model = nn.Linear(4, 3)
    score = classification_score(
        model, [(inputs[:7], targets[:7]), (inputs[7:], targets[7:])], classes=3
    )
    logits = (inputs @ model.weight.T + model.bias).detach()
    losses = [
        math.log(sum(math.exp(value) for value in row)) - row[target]
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    hits = [max(range(3), key=row.__getitem__) for row in logits.tolist()]
    assert score.loss == pytest.approx(sum(losses) / 10, rel=1e-5)
    assert score.accuracy == sum(a == b for a, b in zip(hits, targets.tolist(), strict=True)) / 10
    assert score.samples == 10
    spread = math.sqrt(sum((loss - sum(losses) / 10) ** 2 for loss in losses) / 9)
    assert score.loss_stderr == pytest.approx(spread / math.sqrt(10), rel=1e-5)


def test_standard_error_of_one_sample_is_not_known():
    assert math.isnan(Score.of(torch.tensor([2.0]), torch.tensor([1.0])).loss_stderr)


def test_stated_standard_error_is_that_of_repeated_draws():
    # 400 draws: their standard deviation is within 20 % of the truth but for a chance below 1e-7.
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(400, 50, generator=generator)
    scores = [Score.of(losses, losses) for losses in draws]
    found = float(torch.tensor([score.loss for score in scores]).std())
    assert found == pytest.approx(scores[0].loss_stderr, rel=0.3)
    assert found == pytest.approx(math.sqrt(1 / 12 / 50), rel=0.2)


def test_every_module_gets_its_own_mode_back_even_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 2)).train()
    model[0].eval()
    seen = []

    def fail(module, inputs):
        seen.extend(part.training for part in model.modules())
        raise RuntimeError("inside")

    model[2].register_forward_pre_hook(fail)
    batch = (torch.zeros(2, 2), torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match="inside"):
        classification_score(model, [batch])
    assert seen == [False] * 4
    assert [module.training for module in model.modules()] == [True, False, True, True]


def test_scoring_runs_in_evaluation_mode_and_leaves_batch_statistics_alone():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.9)).train()
    batch = [(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))]
    assert classification_score(model, batch) == classification_score(model, batch)
    assert model[0].num_batches_tracked == 0
    assert model.training


def test_parameters_can_be_trained_after_scoring_a_model_that_caches_in_forward():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.cached = None

        def forward(self, x):
            if self.cached is None:
                self.cached = torch.ones(2) * 2
            return self.linear(x) * self.cached

    model = Caching()
    classification_score(model, [(torch.zeros(1, 2), torch.tensor([0]))])
    model(torch.ones(1, 2)).sum().backward()
    assert model.linear.weight.grad is not None


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: (x, x), "returned tuple"),
        (torch.zeros(2, 3, 4), r"returned \(2, 3, 4\)"),
        (torch.zeros(1, 3), r"\(2, classes\)"),
        (torch.zeros(2, 4), "3 classes, but the network has 4 outputs"),
        (torch.zeros(2, 2), "3 classes, but the network has 2 outputs"),
        (torch.full((2, 3), torch.nan), "not finite"),
        (torch.tensor([[0.0, torch.inf, 0.0]] * 2), "not finite"),
    ],
)
def test_outputs_that_are_no_logits_for_the_classes_are_named(output, message):
    batch = (torch.zeros(2, 3), torch.tensor([0, 2]))
    with pytest.raises(TaskError, match=message):
        classification_score(_Returns(output), [batch], classes=3)


def test_without_a_number_of_classes_the_outputs_must_hold_the_targets():
    batch = (torch.zeros(2, 3), torch.tensor([0, 2]))
    assert classification_score(_Returns(torch.zeros(2, 9)), [batch]).samples == 2
    with pytest.raises(TaskError, match="3 classes, but the network has 2 outputs"):
        classification_score(_Returns(torch.zeros(2, 2)), [batch])


def test_no_samples_are_an_error_and_no_division_by_zero():
    with pytest.raises(TaskError, match="no samples"):
        classification_score(nn.Identity(), [])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_reference_inputs_have_exactly_the_deployment_batch(batch):
    images = torch.arange(3.0).view(3, 1)
    (inputs,) = reference_inputs(images, batch)
    assert inputs.flatten().tolist() == [float(index % 3) for index in range(batch)]
