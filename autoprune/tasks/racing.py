"""Scores a network on more and more samples, and stops where it is clearly worse than another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from autoprune.tasks.base import SampledTask, Score, run_batches, total_score

#: Samples after which a network is compared; those that a split does not exceed vanish.
RUNGS = (256, 1024)

#: Standard errors by which a network must be worse to be stopped.
STANDARD_ERRORS = 2.5

#: What another network scored on the first samples, by growing number of samples.
Bar = Sequence[Score]

#: Model outputs and targets to each sample's loss, or losses, and fraction right.
SampleScores = Callable[[object, Tensor], tuple[Float[Tensor, "n ..."], Float[Tensor, " n"]]]

#: What these gave for all batches so far to one score.
Total = Callable[[Sequence[tuple[Tensor, Tensor]]], Score]


def rungs(samples: int) -> tuple[int, ...]:
    """Return after how many samples a network is scored, the last time after all.

    >>> rungs(2048), rungs(1024), rungs(100)
    ((256, 1024, 2048), (256, 1024), (100,))
    """
    return (*(rung for rung in RUNGS if rung < samples), samples)


def race(
    task: SampledTask,
    model: nn.Module,
    bar: Bar = (),
    *,
    scored: SampleScores | None = None,
    total: Total = total_score,
) -> tuple[Score, ...]:
    """Return the scores of ``model`` after each rung of the search split.

    They end early where the model is :func:`clearly_worse` than the bar; the last then has fewer
    samples than the split.

    Args:
        task: The data.
        model: A network.
        bar: What it is compared with, on the same samples; compared where it has that rung.
        scored: Scores the samples of a batch; ``None`` is the task's own way.
        total: Makes one score of what ``scored`` gave for all batches.

    Raises:
        TaskError: The outputs are not what the task needs.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    found: list[Score] = []
    for stop in rungs(task.samples("search")):
        start = found[-1].samples if found else 0
        batches = task.batches("search", start, stop)
        parts += run_batches(model, batches, scored or task.sample_scores)
        found.append(total(parts))
        if clearly_worse(found[-1], bar):
            break
    return tuple(found)


def clearly_worse(score: Score, bar: Bar) -> bool:
    """Return whether a loss is worse than the bar's on the same samples by more than chance.

    A network that is right more often than the bar is not, whatever its loss: far from the
    unpruned network, where losses exceed that of guessing, the two disagree, and the front is made
    of accuracies.

    The losses of two networks on the same samples are correlated. The standard error of their
    difference is taken as that of independent samples all the same, which is larger: fewer networks
    are stopped than a paired test would stop.

    >>> bar = [Score(1.0, 0.5, 256, 0.3), Score(1.0, 0.5, 300, 0.3)]
    >>> [clearly_worse(Score(loss, 0.5, 256, 0.4), bar) for loss in (2.2, 2.3)]
    [False, True]
    """
    return any(
        score.loss - other.loss > STANDARD_ERRORS * math.hypot(score.loss_stderr, other.loss_stderr)
        for other in bar
        if other.samples == score.samples and score.accuracy <= other.accuracy
    )
