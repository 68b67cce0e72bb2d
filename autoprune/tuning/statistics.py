"""BatchNorm statistics in training: those stored made true, or kept as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.pruning.criterion import Batches
from autoprune.pruning.statistics import Moments
from autoprune.tasks.base import evaluation_mode


@torch.no_grad()
def own_statistics(model: nn.Module, batches: Batches) -> int:
    """Give every BatchNorm the statistics of its inputs, its outputs unchanged, in place.

    Reconstruction keeps its intercepts in the running means, and statistics that are not those of
    the inputs in the running variances. In training mode a layer reads neither. Its scale and shift
    take over what the stored statistics do beside the true ones, so that the network computes the
    same in evaluation mode, and nearly so in training mode.

    A layer without scale and shift cannot take anything over, and stays as it is; so does one
    without stored statistics, or that does not run or sees one value per channel.

    Args:
        model: A network of its own.
        batches: Calibration data; targets are not read.

    Returns:
        How many layers were changed; 0 without a forward pass where there is no such layer.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm)
        and layer.affine
        and layer.running_mean is not None
        and layer.running_var is not None
    ]
    if not layers:
        return 0
    moments: dict[nn.Module, Moments] = {}
    device = layers[0].weight.device
    with evaluation_mode(model), _noting(layers, moments):
        for inputs, _ in batches:
            model(inputs.to(device))
    for layer, seen in moments.items():
        _absorb(layer, seen)
    return len(moments)


def keep_statistics(model: nn.Module) -> None:
    """Let BatchNorm layers of a network in training mode normalise as in evaluation mode, in place.

    Scale and shift go on learning; what a layer divides by no longer changes from batch to batch.
    """
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.eval()


@contextmanager
def _noting(layers: list[_BatchNorm], moments: dict[nn.Module, Moments]) -> Iterator[None]:
    """Pool the moments of what each layer gets while the body runs."""

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].transpose(0, 1).flatten(1).float()
        if rows.shape[1] > 1:
            latest = Moments(rows.shape[1], rows.mean(1), rows.var(1))
            moments[layer] = moments[layer].pooled(latest) if layer in moments else latest

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _absorb(layer: nn.Module, seen: Moments) -> None:
    """Replace the statistics of a layer, and correct its scale and shift for it."""
    assert isinstance(layer, _BatchNorm)  # what own_statistics chose
    assert layer.running_mean is not None
    assert layer.running_var is not None
    stored = (layer.running_var + layer.eps).sqrt()
    layer.bias.add_(layer.weight * (seen.mean - layer.running_mean) / stored)
    layer.weight.mul_((seen.variance + layer.eps).sqrt() / stored)
    layer.running_mean.copy_(seen.mean)
    layer.running_var.copy_(seen.variance)
