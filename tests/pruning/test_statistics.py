from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.pruning.statistics import Moments, recalibrate_batchnorm
from autoprune.testing.networks import TINY_NETWORKS, tiny

TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norms(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, TYPES)}


def layer_by_layer(model, images):
    """Return naively repaired statistics: one eval-mode pass per layer, in execution order."""
    model = copy.deepcopy(model)
    order, seen = [], {}
    for path, module in batch_norms(model).items():
        module.register_forward_pre_hook(
            lambda module, args, path=path: (order.append(path), seen.update({path: args[0]}))[0]
        )
    unbiased = {}
    with torch.no_grad():
        model(images)
        for path in list(order):
            model(images)
            values = seen[path].movedim(1, 0).flatten(1)
            module = batch_norms(model)[path]
            unbiased[path] = values.mean(1), values.var(1, correction=1)
            module.running_mean.copy_(values.mean(1))
            module.running_var.copy_(values.var(1, correction=0))
    return unbiased


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
@pytest.mark.parametrize("sizes", [(12,), (5, 4, 3)])
def test_one_pass_equals_one_pass_per_layer(name, sizes):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(*sizes)
    expected = layer_by_layer(case.model, torch.cat([inputs for inputs, _ in batches]))
    assert recalibrate_batchnorm(case.model, batches) == len(expected)
    for path, module in batch_norms(case.model).items():
        torch.testing.assert_close(module.running_mean, expected[path][0])
        torch.testing.assert_close(module.running_var, expected[path][1])


def test_only_statistics_change():
    case = tiny("residual")
    case.model.train()
    case.model.reduce_norm.eval()
    case.model.stem_norm.momentum = None
    before = copy.deepcopy(case.model.state_dict())
    buffers = [id(buffer) for buffer in case.model.buffers()]
    flags = [module.training for module in case.model.modules()]
    random_state = torch.get_rng_state()
    assert recalibrate_batchnorm(case.model, case.batches(8)) == 3
    changed = {
        key for key, value in case.model.state_dict().items() if not torch.equal(value, before[key])
    }
    norms = ("stem_norm", "reduce_norm", "expand_norm")
    assert changed == {f"{n}.{s}" for n in norms for s in ("running_mean", "running_var")}
    assert [id(buffer) for buffer in case.model.buffers()] == buffers
    assert [module.training for module in case.model.modules()] == flags
    assert case.model.stem_norm.momentum is None
    assert case.model.reduce_norm.momentum == 0.1
    assert not any(module._forward_hooks for module in case.model.modules())
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_dropout_stays_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    images = torch.arange(12.0).reshape(4, 3)
    recalibrate_batchnorm(model, [(images, torch.zeros(4))])
    torch.testing.assert_close(model[1].running_mean, images.mean(0))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (6, 3)),
        (nn.BatchNorm1d(3), (6, 3, 5)),
        (nn.BatchNorm2d(3), (6, 3, 5, 4)),
        (nn.BatchNorm3d(3), (6, 3, 2, 3, 4)),
    ],
)
def test_every_kind_of_batchnorm(layer, shape):
    images = torch.linspace(-1, 3, 6 * 3 * 40)[: torch.Size(shape).numel()].reshape(shape)
    assert recalibrate_batchnorm(layer, [(images, torch.zeros(6))]) == 1
    values = images.movedim(1, 0).flatten(1)
    torch.testing.assert_close(layer.running_mean, values.mean(1))
    torch.testing.assert_close(layer.running_var, values.var(1))


class Counting(nn.Module):
    """Counts the images of every forward pass."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.norm(images)


def test_many_small_batches_are_one_forward_pass():
    model = Counting()
    case = tiny("chain")
    recalibrate_batchnorm(model, case.batches(*[4] * 8))
    assert model.sizes == [32]


def test_images_beyond_the_memory_limit_are_pooled_exactly():
    model, case = Counting(), tiny("chain")
    # 3 * 8 * 8 floats and a factor of 64 are 48 KiB an image, so 1 MiB holds 21 of them.
    ((images, targets),) = case.batches(50)
    recalibrate_batchnorm(model, [(images + 5, targets)], memory_mb=1)
    assert model.sizes == [17, 17, 16]
    values = (images + 5).movedim(1, 0).flatten(1)
    torch.testing.assert_close(model.norm.running_mean, values.mean(1))
    torch.testing.assert_close(model.norm.running_var, values.var(1))


def test_batches_of_different_shapes_are_pooled_exactly():
    model = Counting()
    small, large = torch.randn(4, 3, 5, 5), 3 + torch.randn(2, 3, 9, 7)
    recalibrate_batchnorm(model, [(small, torch.zeros(4)), (large, torch.zeros(2))])
    assert model.sizes == [4, 2]
    values = torch.cat([x.movedim(1, 0).flatten(1) for x in (small, large)], dim=1)
    torch.testing.assert_close(model.norm.running_mean, values.mean(1))
    torch.testing.assert_close(model.norm.running_var, values.var(1))


def test_a_layer_that_runs_twice_gets_the_moments_of_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, images):
            return self.norm(self.norm(images) * 3 + 1)

    model = Twice()
    images = torch.tensor([[0.0, 1.0], [4.0, 2.0], [5.0, 9.0]])
    recalibrate_batchnorm(model, [(images, torch.zeros(3))])
    first = (images - images.mean(0)) / (images.var(0, correction=0) + model.norm.eps).sqrt()
    values = torch.cat([images, first * 3 + 1])
    torch.testing.assert_close(model.norm.running_mean, values.mean(0))
    torch.testing.assert_close(model.norm.running_var, values.var(0))


def test_a_layer_that_does_not_run_keeps_its_statistics():
    case = tiny("chain")
    case.model.conv1.spare = nn.BatchNorm2d(4)
    case.model.conv1.spare.running_mean.fill_(7)
    assert recalibrate_batchnorm(case.model, case.batches(4)) == 2
    assert case.model.conv1.spare.running_mean.tolist() == [7.0] * 4


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 2), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3)]
)
def test_without_running_statistics_there_is_nothing_to_do(model):
    assert recalibrate_batchnorm(model, []) == 0


def test_missing_images_are_refused():
    with pytest.raises(PruningError, match="need calibration images and got none"):
        recalibrate_batchnorm(tiny("chain").model, [])


def test_one_value_per_channel_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    with pytest.raises(PruningError, match=r"shape \(1, 2\); give at least two"):
        recalibrate_batchnorm(model, [(torch.ones(1, 3), torch.zeros(1))])
    assert model[1].running_mean.tolist() == [0.0, 0.0]
    assert model[1].training
    assert model[1].momentum == 0.1
    assert not model[1]._forward_hooks


def test_statistics_that_are_not_finite_are_replaced():
    case = tiny("chain")
    case.model.norm1.running_mean.fill_(torch.nan)
    case.model.norm1.running_var.fill_(torch.inf)
    recalibrate_batchnorm(case.model, case.batches(4))
    assert case.model.norm1.running_mean.isfinite().all()
    assert case.model.norm1.running_var.isfinite().all()


def test_pooled_moments_do_not_lose_a_small_variance():
    left, right = torch.randn(7, 2) + 1e4, torch.randn(5, 2) + 1e4
    moments = [Moments(len(x), x.mean(0), x.var(0)) for x in (left, right)]
    pooled = moments[0].pooled(moments[1])
    both = torch.cat([left, right])
    assert pooled.count == 12
    torch.testing.assert_close(pooled.variance, both.var(0), rtol=1e-2, atol=0)
