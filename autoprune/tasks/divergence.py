"""How far a network's output distributions are from the unpruned network's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.tasks.base import SampledTask, Score, run_batches
from autoprune.tasks.racing import Bar, race

#: Bytes of distributions that are kept; where they are more, the unpruned network runs again beside
#: every network.
KEPT_BYTES = 2**28


class Divergence:
    """Scores networks by the Kullback-Leibler divergence from the unpruned network.

    The loss of a sample is the sum over classes of ``p log(p / q)`` in nats, where p is the
    unpruned network's distribution and q the other's, averaged over the positions of a sequence
    [Kullback1951]. No label is read for it; the fraction right is the task's own. A task without
    labels can give the unpruned network's answers in their place.

    References:
        [Kullback1951] S. Kullback, R. A. Leibler. On Information and Sufficiency. Annals of
        Mathematical Statistics 22(1), 1951.
    """

    def __init__(self, task: SampledTask, dense: nn.Module) -> None:
        """Run the unpruned network over the search split, where its distributions can be kept.

        Args:
            task: The data.
            dense: The unpruned network.

        Raises:
            TaskError: Its outputs are not what the task needs.
        """
        self.task, self.dense = task, dense
        self._kept: Tensor | None = None
        samples = task.samples("search")
        (one,) = run_batches(dense, task.batches("search", 0, 1), self._distributions)
        if samples * one.nbytes <= KEPT_BYTES:
            batches = task.batches("search", 0, samples)
            self._kept = torch.cat(run_batches(dense, batches, self._distributions))

    def race(self, model: nn.Module, bar: Bar = ()) -> tuple[Score, ...]:
        """Return divergence and fraction right after each rung.

        They end early where the model is worse than the bar, as :func:`race` says.

        Args:
            model: A network.
            bar: Divergences of another one.

        Raises:
            TaskError: The outputs are not what the task needs.
        """
        kept, seen = self._kept, 0
        if kept is None:
            return race(self.task, _Pair(self.dense, model), bar, scored=self._pair_scores)

        def scored(outputs: object, targets: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal seen
            reference = kept[seen : seen + len(targets)]
            seen += len(targets)
            return self._scores(reference, outputs, targets)

        return race(self.task, model, bar, scored=scored)

    def _pair_scores(self, outputs: object, targets: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(outputs, tuple)  # what _Pair returns
        return self._scores(self._distributions(outputs[0], targets), outputs[1], targets)

    def _scores(
        self, reference: Float[Tensor, "n *positions classes"], outputs: object, targets: Tensor
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        _, correct = self.task.sample_scores(outputs, targets)
        return divergence(reference, self.task.log_probabilities(outputs)), correct

    def _distributions(self, outputs: object, targets: Tensor) -> Tensor:
        self.task.sample_scores(outputs, targets)  # refuses what has no distributions
        return self.task.log_probabilities(outputs)


class _Pair(nn.Module):
    """Returns what two networks return."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, inputs: Tensor) -> tuple[object, object]:
        return self.first(inputs), self.second(inputs)


def divergence(
    reference: Float[Tensor, "n *positions classes"], other: Float[Tensor, "n *positions classes"]
) -> Float[Tensor, " n"]:
    """Return the Kullback-Leibler divergence of each sample in nats, averaged over positions.

    >>> half = torch.tensor([[0.5, 0.5, 0.0]]).log()
    >>> divergence(half, torch.tensor([[0.25, 0.5, 0.25]]).log())
    tensor([0.3466])

    Args:
        reference: Log-probabilities of the distribution that is meant.
        other: Log-probabilities of the one that stands for it.
    """
    probable = reference.exp()
    # What has no probability adds nothing, however improbable the other takes it to be.
    each = torch.where(probable > 0, probable * (reference - other), 0.0).sum(dim=-1)
    return each.reshape(len(each), -1).mean(dim=1)
