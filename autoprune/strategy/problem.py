"""What a sampler may know before any evaluation: the space, the exact latency, the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.errors import ProfileError
from autoprune.network.ops import OpTable
from autoprune.strategy.damage import Damage, neighbours
from autoprune.strategy.fastest import search_fastest
from autoprune.strategy.space import Candidate, SearchSpace

#: Kept units ``[n, groups]`` and kept blocks ``[n, blocks]`` to latency in ms ``[n]``.
Latency = Callable[
    [Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]], Float[np.ndarray, " n"]
]

#: Nats that are added to a divergence before its logarithm is taken.
DIVERGENCE_OFFSET = 0.05

#: Losses below it count as it before their logarithm is taken.
LEAST_LOSS = 1e-12


@dataclasses.dataclass(frozen=True)
class Problem:
    """A search space with its latency and budget; accuracy is the only unknown.

    Attributes:
        space: The candidates.
        latency: Predicts milliseconds for many candidates at once; the same for the same rows.
        budget_ms: Latency no candidate may exceed; ``None`` for no limit.
        ops: The network's operators, from which MACs, parameters and the features of layers come;
            ``None`` where a sampler is used on something else than a traced network.
        damage: Expected damage of what a candidate removes; ``None`` where it was not computed.
        scores: Importance of every unit by group name; empty where it was not computed.
        loss_offset: Nats that are added to losses before :meth:`log_loss`: 0 for a cross-entropy,
            :data:`DIVERGENCE_OFFSET` for a divergence, which is 0 for the unpruned network.
        guess_loss: Loss in nats of guessing, beyond which a network is of no use; ``None`` where it
            is not known.
    """

    space: SearchSpace
    latency: Latency
    budget_ms: float | None = None
    ops: OpTable | None = None
    damage: Damage | None = None
    scores: Mapping[str, Float[np.ndarray, " _"]] = dataclasses.field(default_factory=dict)
    loss_offset: float = 0.0
    guess_loss: float | None = None

    def log_loss(self, losses: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the logarithms of losses as the study has them, which models of the loss fit.

        Losses of 0 count as :data:`LEAST_LOSS`.
        """
        logs: Float[np.ndarray, " n"] = np.log(np.maximum(losses + self.loss_offset, LEAST_LOSS))
        return logs

    def latency_ms(self, candidates: Sequence[Candidate]) -> Float[np.ndarray, " n"]:
        """Return the predicted latency of each candidate in ms."""
        return self.predict(self.space.widths(candidates), self.space.keep(candidates))

    def predict(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return the predicted latency in ms of widths and kept blocks.

        Raises:
            ProfileError: The predictor returned something else than one finite number per row.
        """
        if not len(widths):
            return np.zeros(0)
        predicted: Float[np.ndarray, " n"] = np.asarray(self.latency(widths, keep), float)
        if predicted.shape != (len(widths),) or not np.isfinite(predicted).all():
            raise ProfileError(
                f"the latency predictor should give one finite number for each of {len(widths)} "
                f"candidates, got shape {predicted.shape} with "
                f"{int((~np.isfinite(predicted)).sum())} not finite; check the device profile"
            )
        return predicted

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Indices of groups that meet in an operator, one as its inputs and one as its outputs."""
        if self.ops is None:
            return ()
        return neighbours(
            [
                (read, written)
                for op in self.ops.ops
                if op.kind in ("conv", "linear", "matmul")
                for read, _ in op.cin.terms
                for written, _ in op.cout.terms
            ]
        )

    @cached_property
    def dense_ms(self) -> float:
        """Predicted latency of the unpruned network in ms."""
        return float(self.latency_ms([self.space.dense()])[0])

    @cached_property
    def fastest(self) -> tuple[Candidate, float]:
        """The fastest candidate that was found, and its latency in ms."""
        widths, keep = search_fastest(self.space, self.predict)
        candidate = self.space.candidates(widths, keep)[0]
        return candidate, float(self.latency_ms([candidate])[0])
