import dataclasses
import json
import math

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from autoprune.errors import RunError
from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.tasks.base import TrainingTask
from autoprune.testing.networks import CLASSES, INPUT_SHAPE, tiny
from autoprune.testing.tasks import taught_images
from autoprune.tuning.features import block_features, feature_loss, noted
from autoprune.tuning.loop import Tuner
from autoprune.tuning.settings import TuneSettings

STEPS = 12


@pytest.fixture
def teacher():
    return tiny("residual").model


@pytest.fixture
def network(teacher):
    return trace(teacher, (torch.zeros(INPUT_SHAPE),))


@pytest.fixture
def pruned(network):
    half = {g.name: tuple(range(0, g.size, 2)) for g in network.groups}
    return Surgeon(network).cut(PruningPlan(half))


@pytest.fixture
def task(teacher):
    return taught_images(teacher, classes=CLASSES, shape=INPUT_SHAPE)


def tuner(pruned, teacher, task, **settings):
    given = {"steps": STEPS, "batch": 32, "checks": 3, "precision": "fp32", **settings}
    return Tuner(pruned, teacher, task, settings=TuneSettings.checked(given))


def same(first, second):
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("distill", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_learns(pruned, teacher, task, optimiser, distill):
    before = task.evaluate(pruned, "test")
    tuned = tuner(
        pruned, teacher, task, steps=60, optimiser=optimiser, distill=distill, original_lr=0.02
    ).run()
    after = task.evaluate(tuned.model, "test")

    assert after.loss < 0.7 * before.loss
    assert after.accuracy > before.accuracy
    assert tuned.complete


@pytest.mark.parametrize("statistics", ["batch", "stored"])
def test_one_step_is_that_of_a_plain_loop(pruned, teacher, task, statistics):
    settings = {"steps": 1, "warm_up": 0, "checks": 0, "ema": 0, "clip": 0, "original_lr": 0.1}
    made = tuner(pruned, teacher, task, statistics=statistics, **settings)
    images, labels = task.training_batch(made.order.positions(0), np.random.default_rng(0))

    pruned.train(statistics == "batch")  # it has no dropout, so this is BatchNorm's mode alone
    logits, aims = pruned(images), teacher(images).detach()
    own = nn.functional.cross_entropy(logits, labels)
    p, q = (each / 2 for each in (aims, logits))
    kl = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
    (0.5 * own + 0.5 * 4 * kl).backward()
    # Nesterov's first step goes 1.9 times along the gradient, weights decayed and nothing else
    expected = {
        name: p - 0.05 * 1.9 * (p.grad + (5e-4 * p if p.ndim > 1 else 0))
        for name, p in pruned.named_parameters()
    }

    tuned = made.run().model
    for name, parameter in tuned.named_parameters():
        torch.testing.assert_close(parameter, expected[name])


@pytest.mark.parametrize("statistics", ["batch", "stored"])
def test_stored_statistics_stay_unless_those_of_the_batch_are_asked_for(
    pruned, teacher, task, statistics
):
    tuned = tuner(pruned, teacher, task, statistics=statistics, checks=0).run().model

    before, after = (
        {name: b for name, b in each.named_buffers() if "running" in name}
        for each in (pruned, tuned)
    )
    assert before
    for name, buffer in before.items():
        assert torch.equal(buffer, after[name]) == (statistics == "stored"), name


def test_leaves_both_networks_and_the_random_state_as_they_were(pruned, teacher, task):
    first = next(pruned.parameters()).requires_grad_(False)
    copies = [{k: v.clone() for k, v in net.state_dict().items()} for net in (pruned, teacher)]
    state = torch.get_rng_state()

    tuned = tuner(pruned, teacher, task).run().model

    for network, copy in zip((pruned, teacher), copies, strict=True):
        assert all(torch.equal(value, copy[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.requires_grad
    assert not next(tuned.parameters()).requires_grad
    assert not any(module.training for module in tuned.modules())
    assert not torch.equal(next(tuned.parameters()), first)


def test_same_seed_gives_the_same_network(pruned, teacher, task):
    first, again, other = (
        tuner(pruned, teacher, task, seed=seed, checks=0).run().model for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("settings", [{}, {"optimiser": "adamw"}, {"ema": 0}, {"checks": 0}])
@pytest.mark.parametrize("after", [1, 5])
def test_goes_on_from_a_checkpoint_exactly(pruned, teacher, task, tmp_path, settings, after):
    dropped = nn.Sequential(pruned, nn.Dropout(0.2))
    whole = tuner(dropped, teacher, task, **settings).run()
    path = tmp_path / "checkpoint.safetensors"
    steps = iter(range(1, STEPS))

    half = tuner(dropped, teacher, task, **settings).run(
        checkpoint=path, stop=lambda: next(steps) == after
    )
    assert not half.complete
    rest = tuner(dropped, teacher, task, **settings).run(checkpoint=path)

    assert rest.complete
    assert same(whole.model, rest.model)
    timeless = [
        [dataclasses.replace(check, seconds=0.0) for check in tuned.history]
        for tuned in (whole, rest)
    ]
    assert str(timeless[0]) == str(timeless[1])  # NaN is not equal to itself


def test_checkpoint_is_safetensors_and_written_in_time(pruned, teacher, task, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    seen = []
    tuner(pruned, teacher, task).run(
        checkpoint=path, every_minutes=0.0, listener=lambda progress: seen.append(path.exists())
    )
    assert seen == [False] + [True] * (STEPS - 1)
    with safetensors.safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["autoprune"])
    assert facts["step"] == STEPS


def test_wrong_checkpoints_are_refused(pruned, teacher, task, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    steps = iter(range(STEPS))
    tuner(pruned, teacher, task).run(checkpoint=path, stop=lambda: next(steps) == 2)

    with pytest.raises(RunError, match="12 steps, not 13"):
        tuner(pruned, teacher, task, steps=13).run(checkpoint=path)
    with pytest.raises(RunError, match="another network"):
        tuner(teacher, teacher, task).run(checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="damaged"):
        tuner(pruned, teacher, task).run(checkpoint=path)


def test_result_is_the_network_that_scored_best(pruned, teacher, task):
    # far too large a rate destroys the network, so what it began with is best
    wild = tuner(pruned, teacher, task, original_lr=2.0, clip=0, checks=1, steps=4).run()
    assert wild.best == wild.history[0]
    assert same(wild.model, pruned)

    tuned = tuner(pruned, teacher, task, steps=40, original_lr=0.02, checks=8).run()
    best = max(tuned.history, key=lambda check: (check.accuracy, -check.loss))
    assert tuned.best == best
    score = task.evaluate(tuned.model, "search")
    assert (score.accuracy, score.loss) == (best.accuracy, pytest.approx(best.loss, rel=1e-5))
    assert [check.step for check in tuned.history] == list(range(0, 41, 5))


def test_ends_when_nothing_gets_better(pruned, teacher, task):
    tuned = tuner(pruned, teacher, task, original_lr=2.0, clip=0, checks=12, patience=2).run()
    assert tuned.history[-1].step == tuned.best.step + 2 < STEPS
    assert tuned.complete


def test_only_normalisation_and_biases_change_where_asked(pruned, teacher, task):
    tuned = tuner(pruned, teacher, task, train="normalisation", checks=0, ema=0).run().model
    changed = {
        name
        for name, parameter in tuned.named_parameters()
        if not torch.equal(parameter, pruned.get_parameter(name))
    }
    assert changed == {name for name, p in pruned.named_parameters() if p.ndim == 1}


def test_features_of_the_unpruned_network_are_learnt():
    torch.manual_seed(0)
    teacher = SmallResNet(8, widths=(8, 16, 32)).eval()
    network = trace(teacher, (torch.zeros(2, 3, 16, 16),))
    task = taught_images(teacher, classes=10, shape=(2, 3, 16, 16), samples=128)
    plan = PruningPlan({g.name: tuple(range(0, g.size, 2)) for g in network.groups})
    pruned = Surgeon(network).cut(plan)
    features = block_features(network, plan, pruned)
    names = [feature.module for feature in features]
    images, _ = task.search.batch(0, 128)

    def apart(model):
        with torch.no_grad(), noted(model, names) as own, noted(teacher, names) as aims:
            model(images), teacher(images)
            return float(feature_loss(features, own, aims))

    given = {"steps": 20, "batch": 32, "checks": 0, "precision": "fp32", "distill": 0.0}
    plain, guided = (
        Tuner(
            pruned,
            teacher,
            task,
            settings=TuneSettings.checked({**given, "features": weight, "original_lr": 0.02}),
            features=features,
        ).run()
        for weight in (0.0, 2.0)
    )
    assert apart(guided.model) < 0.9 * apart(plain.model)


def test_progress_tells_steps_scores_and_time(pruned, teacher, task):
    heard = []
    tuner(pruned, teacher, task).run(listener=heard.append)
    assert [progress.step for progress in heard] == list(range(1, STEPS + 1))
    assert heard[-1].seconds_left == 0
    assert all(progress.seconds_left > 0 for progress in heard[:-1])
    assert [progress.last.step for progress in heard] == [0] * 3 + [4] * 4 + [8] * 4 + [12]
    assert math.isfinite(heard[0].train_loss)


def test_a_loss_that_is_not_finite_ends_it(pruned, teacher, task):
    class Broken(type(task)):
        def sample_scores(self, outputs, targets):
            losses, correct = super().sample_scores(outputs, targets)
            return losses * math.nan, correct

    broken = Broken.__new__(Broken)
    broken.__dict__.update(task.__dict__)
    assert isinstance(broken, TrainingTask)
    with pytest.raises(RunError, match="loss is nan at step 1; take a lower --lr-fraction"):
        tuner(pruned, teacher, broken, checks=0).run()


def test_diverging_is_explained(pruned, teacher, task):
    with pytest.raises(RunError, match=r"not finite.*take a lower --lr-fraction"):
        tuner(pruned, teacher, task, original_lr=1e30, clip=0).run()
