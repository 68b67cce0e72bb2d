"""Which parameters are trained, and by what."""

from __future__ import annotations

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.tuning.settings import TuneSettings


def choose_parameters(model: nn.Module, settings: TuneSettings) -> dict[str, nn.Parameter]:
    """Return the parameters to train by name, and let only them have gradients.

    What has a single dimension are biases and what normalisation layers scale and shift by.

    Raises:
        ModelError: There is none.
    """
    chosen = {}
    for name, parameter in model.named_parameters():
        fits = settings.train == "all" or parameter.ndim <= 1
        parameter.requires_grad_(fits and parameter.is_floating_point())
        if parameter.requires_grad:
            chosen[name] = parameter
    if not chosen:
        raise ModelError(
            f"{type(model).__name__} has no parameters to train"
            + (" but weights; take train='all'" if settings.train == "normalisation" else "")
        )
    return chosen


def build_optimiser(
    parameters: dict[str, nn.Parameter], settings: TuneSettings
) -> torch.optim.Optimizer:
    """Return the optimiser; biases and normalisation are not decayed."""
    groups = [
        {
            "params": [p for p in parameters.values() if p.ndim > 1],
            "weight_decay": settings.decay,
        },
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.method == "adamw":
        return torch.optim.AdamW(groups, lr=settings.peak_lr)
    return torch.optim.SGD(groups, lr=settings.peak_lr, momentum=0.9, nesterov=True)
