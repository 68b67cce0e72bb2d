import copy
import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from ray import cloudpickle
from torch import nn

from autoprune.errors import TaskError, UnknownNameError
from autoprune.evaluation import Evaluation, Evaluator, unit_order
from autoprune.network.trace import trace
from autoprune.pruning.realiser import REALISERS
from autoprune.pruning.verify import verified
from autoprune.strategy.problem import Problem
from autoprune.strategy.settings import SpaceSettings
from autoprune.strategy.space import Candidate, build_space
from autoprune.tasks.base import (
    SampledTask,
    Score,
    Task,
    classification_score,
    classification_scores,
)
from autoprune.tasks.numerics import Numerics
from autoprune.testing.evaluators import LinearLatency

CLASSES = 4


class Blobs(Task):
    """Images whose class is the channel that is brightest."""

    name = "blobs"

    def __init__(self, error=None):
        self.error = error
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(48, CLASSES, 6, 6, generator=generator)
        self.labels = torch.arange(48) % CLASSES
        self.images[torch.arange(48), self.labels] += 3.0

    def example_inputs(self):
        return (self.images[:8],)

    def calibration(self, samples):
        return [(self.images[:samples], self.labels[:samples])]

    def evaluate(self, model, split):
        if self.error is not None:
            raise self.error
        part = slice(16, 32) if split == "search" else slice(32, 48)
        return classification_score(model, [(self.images[part], self.labels[part])])


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(CLASSES, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).eval()
    nn.init.uniform_(model[1].running_mean, -0.5, 0.5)
    return verified(trace(model, Blobs().example_inputs()))


def evaluator_for(task=None, scores=None, **options):
    traced = network()
    settings = SpaceSettings(version=1, multiple=1)
    space = build_space(traced.groups, traced.blocks, settings, alignment=1)
    if scores is None:
        scores = {group.name: np.arange(group.size, dtype=float) for group in traced.groups}
    return Evaluator(
        traced,
        task or Blobs(),
        problem=Problem(space, LinearLatency()),
        scores=scores,
        calibration_samples=16,
        **options,
    )


@pytest.mark.parametrize("name", REALISERS.names())
def test_realises_candidates_as_it_is_told(name):
    evaluator = evaluator_for(realise=name)
    candidate = half(evaluator)
    realiser = REALISERS[name]()
    realiser.prepare(evaluator.network, evaluator.task.calibration(16))
    expected = realiser(evaluator.plan(candidate)).state_dict()
    found = evaluator.build(candidate).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    # The network that loses nothing is the trained one whatever the realisation.
    dense = evaluator.build(evaluator.problem.space.dense()).state_dict()
    trained = evaluator.network.model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in dense.items())


def test_refuses_a_realisation_that_does_not_exist():
    with pytest.raises(UnknownNameError, match=r"no realisation named 'merged'.*merge"):
        evaluator_for(realise="merged")


def half(evaluator):
    return evaluator.problem.space.snap(Candidate((0.5, 0.5)))


def test_scores_agree_with_the_network_it_builds():
    evaluator = evaluator_for()
    candidate = half(evaluator)

    evaluation = evaluator(candidate)

    model = evaluator.build(candidate)
    score = evaluator.task.evaluate(model, "search")
    assert evaluation.status == "complete"
    assert (evaluation.loss, evaluation.accuracy) == (score.loss, score.accuracy)
    assert evaluation.params == sum(p.numel() for p in model.parameters())
    assert evaluation.latency_ms == pytest.approx((8 + 4) / 1000)
    # fvcore's convention by hand: 8 images, 4x4 and 2x2 outputs, then the linear layer
    assert evaluation.macs == 8 * (16 * 8 * CLASSES * 9 + 4 * 4 * 8 * 9 + 4 * CLASSES)
    assert evaluation.seconds > 0
    assert evaluation.candidate == candidate


def test_keeps_the_highest_scoring_units():
    first = np.array([5.0, 1.0, 4.0, 2.0] * 4)
    evaluator = evaluator_for(scores={"0": first, "3": np.arange(8.0)})
    plan = evaluator.plan(half(evaluator))

    assert plan.kept["0"] == (0, 2, 4, 6, 8, 10, 12, 14)
    assert plan.kept["3"] == (4, 5, 6, 7)
    weight = evaluator.build(half(evaluator))[0].weight
    assert torch.equal(weight, evaluator.network.model[0].weight[0::2])


def test_repairs_statistics_on_calibration_data():
    evaluator = evaluator_for()
    model = evaluator.build(half(evaluator))

    features = model[0](Blobs().images[:16])
    torch.testing.assert_close(model[1].running_mean, features.mean(dim=(0, 2, 3)))


def test_unpruned_network_keeps_its_statistics_and_its_outputs():
    evaluator = evaluator_for()
    original = evaluator.network.model
    images = Blobs().images[:4]

    model = evaluator.build(evaluator.problem.space.dense())

    torch.testing.assert_close(model(images), original(images), rtol=0, atol=0)
    assert model is not original


def test_users_model_is_never_modified():
    evaluator = evaluator_for()
    before = copy.deepcopy(evaluator.network.model.state_dict())

    evaluator(half(evaluator))

    after = evaluator.network.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_failure_becomes_an_evaluation_with_its_costs():
    good = evaluator_for()
    bad = evaluator_for(Blobs(error=TaskError("no data today")))

    failed, complete = bad(half(bad)), good(half(good))

    assert (failed.status, failed.reason) == ("failed", "TaskError: no data today")
    assert (failed.macs, failed.params, failed.latency_ms) == (
        complete.macs,
        complete.params,
        complete.latency_ms,
    )
    assert np.isnan(failed.loss)


def test_loss_that_is_not_finite_is_a_failure():
    evaluator = evaluator_for()
    evaluator.task.evaluate = lambda model, split: Score(float("nan"), 0.5, 16)

    evaluation = evaluator(half(evaluator))

    assert (evaluation.status, evaluation.reason) == ("failed", "ValueError: the loss is nan")


class SampledBlobs(Blobs, SampledTask):
    """The same images, one by one."""

    def samples(self, split):
        return 16

    def batches(self, split, start, stop):
        first = 16 if split == "search" else 32
        part = slice(first + start, first + stop)
        yield self.images[part], self.labels[part]

    def sample_scores(self, outputs, targets):
        return classification_scores(outputs, targets)

    def log_probabilities(self, outputs):
        return outputs.log_softmax(1)

    evaluate = SampledTask.evaluate


def test_standard_error_comes_with_the_loss():
    plain, sampled = evaluator_for(), evaluator_for(SampledBlobs())
    here, there = plain(half(plain)), sampled(half(sampled))
    assert (here.loss, here.accuracy, here.samples) == (there.loss, there.accuracy, 16)
    assert here.loss_stderr == there.loss_stderr > 0
    assert (here.rungs, len(there.rungs)) == ((), 1)


def test_scoring_ends_where_the_bar_is_clearly_better(monkeypatch):
    monkeypatch.setattr("autoprune.tasks.racing.RUNGS", (4, 8))
    evaluator = evaluator_for(SampledBlobs())
    whole = evaluator(half(evaluator))
    bar = tuple(
        dataclasses.replace(rung, loss=rung.loss - gap)
        for rung, gap in zip(whole.rungs, (0.0, 9.0, 9.0), strict=True)
    )

    screened = evaluator(half(evaluator), bar)

    assert (whole.status, whole.samples, len(whole.rungs)) == ("complete", 16, 3)
    assert (screened.status, screened.samples) == ("screened", 8)
    assert screened.rungs == whole.rungs[:2]
    assert screened.loss == whole.rungs[1].loss
    assert evaluator_for()(half(evaluator), bar).status == "complete"  # cannot be raced


def test_divergence_of_the_unpruned_network_is_zero_and_of_others_is_not():
    evaluator = evaluator_for(SampledBlobs(), metric="kl")
    dense, pruned = evaluator(evaluator.problem.space.dense()), evaluator(half(evaluator))
    images = evaluator.task.images[16:32]
    p, q = (
        net(images).detach().double().softmax(1)
        for net in (evaluator.network.model, evaluator.build(half(evaluator)))
    )
    assert dense.loss == 0.0
    assert pruned.loss == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
    assert (
        pruned.accuracy
        == evaluator.task.evaluate(evaluator.build(half(evaluator)), "search").accuracy
    )


@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_numerics_are_those_of_the_search_split_alone(metric):
    way = Numerics("bf16", channels_last=True)
    exact = evaluator_for(SampledBlobs(), metric=metric)
    rough = evaluator_for(SampledBlobs(), metric=metric, numerics=way)
    dense, candidate = exact.problem.space.dense(), half(exact)

    there, here = (evaluator(candidate).loss for evaluator in (exact, rough))

    assert there != here == pytest.approx(there, abs=0.02)
    assert rough(dense).loss == pytest.approx(exact(dense).loss, abs=0.02)
    assert metric == "loss" or rough(dense).loss == 0.0
    assert rough.network.model[0].weight.is_contiguous()
    model = rough.build(candidate)
    assert model(SampledBlobs().images[:2]).dtype == torch.float32
    assert model[0].weight.is_contiguous()


def test_calibrated_losses_are_the_least_over_temperatures():
    evaluator = evaluator_for(SampledBlobs(), metric="calibrated")
    plain = evaluator_for(SampledBlobs())(half(evaluator))
    found = evaluator(half(evaluator))
    model = evaluator.build(half(evaluator))
    logits, targets = zip(
        *((model(x).detach(), y) for x, y in evaluator.task.batches("search", 0, 16)), strict=True
    )
    losses = [
        float(nn.functional.cross_entropy(torch.cat(logits) / t, torch.cat(targets)))
        for t in np.geomspace(0.5, 32.0, 200)
    ]
    assert min(losses) - 1e-6 <= found.loss <= plain.loss + 1e-6
    assert found.loss == pytest.approx(min(losses), rel=5e-3)
    assert (found.accuracy, found.samples) == (plain.accuracy, plain.samples)
    with pytest.raises(TaskError, match="'calibrated' needs a task that scores sample by sample"):
        evaluator_for(metric="calibrated")


def test_divergence_needs_samples():
    with pytest.raises(TaskError, match=r"'kl' needs a task that scores sample by sample, and 'bl"):
        evaluator_for(metric="kl")


def test_evaluation_survives_as_plain_values():
    evaluation = evaluator_for(SampledBlobs())(half(evaluator_for()))
    text = json.dumps(evaluation.to_json())
    assert Evaluation.from_json(evaluation.candidate, json.loads(text)) == evaluation


def test_interruption_passes():
    evaluator = evaluator_for(Blobs(error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        evaluator(half(evaluator))


def test_survives_the_way_to_a_worker():
    evaluator = evaluator_for()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    copied = cloudpickle.loads(cloudpickle.dumps(evaluator))

    here, there = evaluator(half(evaluator)), copied(half(evaluator))

    assert (here.loss, here.accuracy, here.macs) == (there.loss, there.accuracy, there.macs)


@pytest.mark.parametrize("scores", [np.zeros(3), np.array([0.0, np.nan])])
def test_unit_order_refuses_scores_that_do_not_fit(scores):
    with pytest.raises(ValueError, match="expected 2 finite scores"):
        unit_order(scores, 2)
