"""How a pruned network is fine-tuned, validated whole before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from autoprune.errors import SettingsError
from autoprune.tasks.numerics import Precision

_Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
_NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, pydantic.Field(ge=1)]
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]

#: What the unpruned networks of the literature were trained with, by optimiser.
ORIGINAL_LR = {"sgd": 0.1, "adamw": 1e-3}
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.01}


class TuneSettings(pydantic.BaseModel):
    """Settings of one fine-tuning.

    The defaults are what Wang et al. found to matter most, a peak learning rate that is a large
    part of the original training's [Wang2023why], and the usual rest.

    Attributes:
        epochs: Passes over the training samples.
        steps: Optimiser steps, in place of ``epochs``.
        batch: Samples per step.
        samples: Only so many of the training samples, the first; ``None`` for all.
        train: ``"all"`` parameters, or ``"normalisation"`` for those of normalisation layers and
            biases alone, which suits short fine-tuning on a processor.
        optimiser: ``"sgd"`` with Nesterov momentum 0.9, or ``"adamw"``; ``None`` is ``"adamw"``
            where only normalisation is trained, else ``"sgd"``.
        original_lr: Peak learning rate of the original training; ``None`` is the optimiser's
            :data:`ORIGINAL_LR`.
        original_batch: Samples per step of the original training, which its learning rate belongs
            to; ``None`` is the same as ``batch``.
        lr_fraction: Peak learning rate as a fraction of the original's.
        warm_up: Fraction of the steps in which the learning rate rises from 0.
        weight_decay: Of weights, not of biases and normalisation; ``None`` is the optimiser's
            :data:`WEIGHT_DECAY`.
        clip: Largest norm of the gradient; 0 does not clip.
        ema: Decay per step of the moving average of the weights, which is the result; 0 for none.
        distill: Share of the loss that is the divergence from the unpruned network's answers; the
            rest is the task's own.
        temperature: What logits are divided by for that divergence.
        features: Weight of the mean squared difference from the unpruned network's features at the
            kept channels, at the beginning; it falls to 0 over the first half.
        statistics: What BatchNorm normalises by in training: the statistics of the ``"batch"``, or
            those ``"stored"``, which a repaired network relies on: few steps at a low rate end with
            a lower loss then (`benchmarks/bm_recovery.py`). A destroyed network, or one at a high
            rate, cannot learn so.
        precision: Number format; ``"auto"`` is bfloat16 where the device computes in it.
        checks: How often the network is scored on the search split, at even distances; the best
            is the result. 0 takes the last without scoring.
        patience: Ends after so many scores in a row that are no better; ``None`` never.
        seed: Of the samples' order, their augmentation and dropout.

    References:
        [Wang2023why] H. Wang, C. Qin, Y. Bai, Y. Fu. Why is the State of Neural Network Pruning
        so Confusing? On the Fairness, Comparison Setup, and Trainability in Network Pruning.
        arXiv:2301.05219, 2023.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    epochs: _Positive = 30.0
    steps: _Count | None = None
    batch: Annotated[int, pydantic.Field(ge=2)] = 128
    samples: _Count | None = None
    train: Literal["all", "normalisation"] = "all"
    optimiser: Literal["sgd", "adamw"] | None = None
    original_lr: _Positive | None = None
    original_batch: _Count | None = None
    lr_fraction: _Positive = 0.5
    warm_up: _Share = 0.05
    weight_decay: _NonNegative | None = None
    clip: _NonNegative = 5.0
    ema: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.999
    distill: _Share = 0.5
    temperature: _Positive = 2.0
    features: _NonNegative = 0.0
    statistics: Literal["batch", "stored"] = "batch"
    precision: Precision = "auto"
    checks: Annotated[int, pydantic.Field(ge=0)] = 10
    patience: _Count | None = None
    seed: Annotated[int, pydantic.Field(ge=0)] = 0

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> TuneSettings:
        """Return the settings that ``values`` give; what is left out takes its default.

        Raises:
            SettingsError: Something is wrong; the message lists all of it.
        """
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}, got {entry['input']!r}"
                for entry in error.errors(include_url=False)
            )
            raise SettingsError(f"fine-tuning cannot be done so: {faults}") from None

    @property
    def method(self) -> Literal["sgd", "adamw"]:
        """The optimiser."""
        return self.optimiser or ("adamw" if self.train == "normalisation" else "sgd")

    @property
    def peak_lr(self) -> float:
        """The highest learning rate.

        >>> TuneSettings(original_lr=0.1, original_batch=256, batch=64).peak_lr
        0.0125
        """
        original = self.original_lr or ORIGINAL_LR[self.method]
        return original * self.lr_fraction * self.batch / (self.original_batch or self.batch)

    @property
    def decay(self) -> float:
        """The weight decay."""
        return WEIGHT_DECAY[self.method] if self.weight_decay is None else self.weight_decay

    def count_steps(self, training_samples: int) -> int:
        """Return how many steps the fine-tuning takes.

        >>> TuneSettings(epochs=2, batch=32).count_steps(100)
        6

        Args:
            training_samples: That the task has.
        """
        samples = min(self.samples or training_samples, training_samples)
        return self.steps or max(1, round(self.epochs * (samples // min(self.batch, samples))))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step: a linear rise, then half a cosine to 0.

        >>> settings = TuneSettings(original_lr=0.1, lr_fraction=1, warm_up=0.2)
        >>> [round(settings.rate(step, 10), 3) for step in (0, 1, 2, 6, 9)]
        [0.05, 0.1, 0.1, 0.05, 0.004]

        Args:
            step: From 0.
            steps: Of the whole fine-tuning.
        """
        rising = round(self.warm_up * steps)
        if step < rising:
            return self.peak_lr * (step + 1) / rising
        along = (step - rising) / max(1, steps - rising)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * along))
