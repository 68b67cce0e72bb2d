"""Cross-entropy at the temperature that suits a network: what it knows, not how sure it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.errors import TaskError
from autoprune.tasks.base import SampledTask, Score, run_batches
from autoprune.tasks.racing import Bar, SampleScores, race

#: What logits are divided by; between two neighbours a loss changes by a few thousandths.
TEMPERATURES: tuple[float, ...] = tuple(np.geomspace(0.5, 32.0, 25).tolist())


def race_calibrated(task: SampledTask, model: nn.Module, bar: Bar = ()) -> tuple[Score, ...]:
    """Return the calibrated scores of ``model`` after each rung of the search split.

    A trained network is often surer of its answers than it is right; the loss of a pruned one can
    then be below the unpruned network's only because it is less sure, while it is right less often
    [Guo2017calibration]. So the outputs are divided by one number for all samples, the one of
    :data:`TEMPERATURES` that makes the mean loss least. No answer changes by it. The highest
    temperature is close to guessing: no loss exceeds that by much.

    Args:
        task: Its networks return one tensor of logits.
        model: A network.
        bar: Calibrated scores of another network, see :func:`~autoprune.tasks.racing.race`.

    Raises:
        TaskError: The outputs are not what the task needs.

    References:
        [Guo2017calibration] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger. On Calibration of Modern
        Neural Networks. ICML 2017.
    """
    return race(task, model, bar, scored=_scorer(task), total=_total)


def calibrated_score(
    task: SampledTask, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Score:
    """Return the calibrated loss and the accuracy of ``model`` on ``batches``.

    Raises:
        TaskError: There are no samples, or the outputs are not what the task needs.
    """
    return _total(run_batches(model, batches, _scorer(task)))


def _scorer(task: SampledTask) -> SampleScores:
    """Return what scores a batch at every temperature, one column each."""

    def scored(
        outputs: object, targets: Tensor
    ) -> tuple[Float[Tensor, "n temperatures"], Float[Tensor, " n"]]:
        if not isinstance(outputs, Tensor):
            raise TaskError(
                "a calibrated loss needs a network that returns one tensor of logits, but it "
                f"returned {type(outputs).__name__}; take the metric 'loss'"
            )
        _, correct = task.sample_scores(outputs, targets)
        logits = outputs.float()
        losses = [task.sample_scores(logits / value, targets)[0] for value in TEMPERATURES]
        return torch.stack(losses, dim=1), correct

    return scored


def _total(
    parts: Sequence[tuple[Float[Tensor, "_ temperatures"], Float[Tensor, " _"]]],
) -> Score:
    """Return the score over batches at the temperature of least mean loss."""
    losses, correct = (torch.cat(column) for column in zip(*parts, strict=True))
    best = losses.double().mean(dim=0).argmin()
    return Score.of(losses[:, best], correct)
