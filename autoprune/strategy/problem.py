"""What a sampler may know before any evaluation: the space, the exact costs, the limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.network.ops import OpTable
from autoprune.strategy.damage import Damage, neighbours
from autoprune.strategy.fastest import search_fastest
from autoprune.strategy.goals import LATENCY, Cost, Goals, Limit, Measure
from autoprune.strategy.space import Candidate, SearchSpace

#: Kept units ``[n, groups]`` and kept blocks ``[n, blocks]`` to latency in ms ``[n]``.
Latency = Measure

#: Nats that are added to a divergence before its logarithm is taken.
DIVERGENCE_OFFSET = 0.05

#: Losses below it count as it before their logarithm is taken.
LEAST_LOSS = 1e-12


@dataclasses.dataclass(frozen=True)
class Problem:
    """A search space with its costs and limits; accuracy is the only unknown.

    Strategies know one cost, the latency, and one limit, the budget. Every other limit is in the
    latency they are shown: a candidate over one is slower than anything that is allowed, the more
    so the more it is over (:meth:`predict`). So whatever meets a budget meets all limits, and
    descent finds its way back inside. Several costs are for
    :class:`~autoprune.strategy.rotation.Rotation`.

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
        costs: What the study minimises beside the loss; empty for the latency alone.
        limits: What candidates may not exceed beside the budget.
        min_accuracy: Fraction right that a network must reach to be of use; ``None`` for no limit.
    """

    space: SearchSpace
    latency: Latency
    budget_ms: float | None = None
    ops: OpTable | None = None
    damage: Damage | None = None
    scores: Mapping[str, Float[np.ndarray, " _"]] = dataclasses.field(default_factory=dict)
    loss_offset: float = 0.0
    guess_loss: float | None = None
    costs: tuple[Cost, ...] = ()
    limits: tuple[Limit, ...] = ()
    min_accuracy: float | None = None

    def log_loss(self, losses: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the logarithms of losses as the study has them, which models of the loss fit.

        Losses of 0 count as :data:`LEAST_LOSS`.
        """
        logs: Float[np.ndarray, " n"] = np.log(np.maximum(losses + self.loss_offset, LEAST_LOSS))
        return logs

    def latency_ms(self, candidates: Sequence[Candidate]) -> Float[np.ndarray, " n"]:
        """Return the latency of each candidate in ms, as :meth:`predict` does."""
        return self.predict(self.space.widths(candidates), self.space.keep(candidates))

    def predict(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return the predicted latency in ms of widths and kept blocks.

        That of candidates over a limit is a multiple of :attr:`ceiling_ms`, by as much as they are
        over; the others' is the true one.

        Raises:
            ProfileError: The predictor returned something else than one finite number per row.
        """
        ms = Cost(LATENCY, self.latency).values(widths, keep)
        if not self.limits or not len(widths):
            return ms
        share = np.max([limit.share(widths, keep) for limit in self.limits], axis=0)
        shown: Float[np.ndarray, " n"] = np.where(
            share <= 1.0, ms, np.maximum(ms, self.ceiling_ms) * share
        )
        return shown

    @cached_property
    def objectives(self) -> tuple[Cost, ...]:
        """What the study minimises beside the loss, at least one."""
        return self.costs or (Cost(LATENCY, self.latency),)

    @cached_property
    def goals(self) -> Goals:
        """What networks are judged by."""
        return Goals(
            costs=tuple(cost.name for cost in self.objectives),
            budget_ms=self.budget_ms,
            limits={limit.cost.name: limit.most for limit in self.limits},
            min_accuracy=self.min_accuracy,
        )

    def cost_values(self, candidates: Sequence[Candidate]) -> Float[np.ndarray, "n costs"]:
        """Return the true value of every objective beside the loss, per candidate."""
        widths, keep = self.space.widths(candidates), self.space.keep(candidates)
        return np.stack([cost.values(widths, keep) for cost in self.objectives], axis=1)

    def extra_costs(self, candidate: Candidate) -> dict[str, float]:
        """Return the costs that objectives and limits name and no other search has, by name."""
        widths, keep = self.space.widths([candidate]), self.space.keep([candidate])
        known = {cost.name: cost for cost in (*self.objectives, *(m.cost for m in self.limits))}
        return {name: float(known[name].values(widths, keep)[0]) for name in self.goals.extra}

    @cached_property
    def ceiling_ms(self) -> float:
        """Latency in ms that no candidate of interest exceeds; those over a limit do."""
        return max(self.dense_ms, self.budget_ms or 0.0)

    @property
    def limit_ms(self) -> float | None:
        """What :meth:`predict` may give at most; ``None`` where anything is allowed."""
        return self.ceiling_ms if self.budget_ms is None and self.limits else self.budget_ms

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
        """Predicted latency of the unpruned network in ms, whether it meets the limits or not."""
        dense = [self.space.dense()]
        latency = Cost(LATENCY, self.latency)
        return float(latency.values(self.space.widths(dense), self.space.keep(dense))[0])

    @cached_property
    def dense_costs(self) -> Float[np.ndarray, " costs"]:
        """The objectives of the unpruned network beside the loss."""
        dense: Float[np.ndarray, " costs"] = self.cost_values([self.space.dense()])[0]
        return dense

    @cached_property
    def fastest(self) -> tuple[Candidate, float]:
        """The fastest candidate that was found, and its latency in ms."""
        widths, keep = search_fastest(self.space, self.predict)
        candidate = self.space.candidates(widths, keep)[0]
        return candidate, float(self.latency_ms([candidate])[0])
