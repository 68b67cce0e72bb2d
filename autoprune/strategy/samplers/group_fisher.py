"""Group Fisher pruning: units go in the order of their Fisher information per millisecond."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.budget import Points
from autoprune.strategy.damage import Damage
from autoprune.strategy.ladder import Ladder
from autoprune.strategy.moves import single_moves, with_moves
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS, wants_damage
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate


class GroupFisher(CandidateSampler):
    """Removes what has the least Fisher information per ms saved, without any evaluation.

    The published method [Liu2021groupfisher] prunes the coupled channel with the smallest s / dM,
    fine-tunes for a few iterations, and so on; M is the memory of activations, the best stand-in
    for latency that it knew. Here dM is the exact latency that goes, s is the problem's damage (by
    default the sum of Fisher scores of the units that go), nothing is fine-tuned between, and the
    path is cut into stages: within one, moves are committed in the order of their price as of its
    beginning, until the stage's latency is saved. A move is one grid step or several (1, 2, 4, ...,
    all) of one group, whichever is cheapest per ms, so plateaus of latency are stepped over; or the
    drop of a block.

    The path's points are proposed by a :class:`~autoprune.strategy.ladder.Ladder` of targets.

    References:
        [Liu2021groupfisher] Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang. Group
        Fisher Pruning for Practical Network Compression. ICML 2021.
    """

    def __init__(self, problem: Problem, *, seed: int, stages: int) -> None:
        """Store parameters; see :func:`group_fisher`."""
        super().__init__(problem, seed=seed)
        self.stages = stages
        self.damage = problem.damage or Damage.quadratic(problem.space)
        self._ladder = Ladder(problem, self.path)

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return the first rung of the path that the study does not have."""
        return self._ladder.first_new(study, trial)

    def path(self, positions: Float[np.ndarray, " n"]) -> Points:
        """Return points of the path; between two stages widths are scaled in proportion."""
        space = self.problem.space
        widths, keep = self._stages
        at = positions * (len(widths) - 1)
        before = np.floor(at).astype(np.int64)
        after = np.minimum(before + 1, len(widths) - 1)
        share = (at - before)[:, None]
        # Blocks go at the end of their stage; until then their groups stay as they are.
        ends = np.where(space.active(keep[after]), widths[after], widths[before])
        between = (1.0 - share) * widths[before] + share * ends
        return space.realise(1.0 - between / space.sizes, ~keep[before])

    @cached_property
    def _stages(self) -> Points:
        """Widths and kept blocks at the end of every stage, the unpruned network first."""
        problem, space = self.problem, self.problem.space
        widths, keep = space.sizes.copy(), np.ones(len(space.blocks), bool)
        ms = problem.dense_ms
        found = [(widths, keep)]
        for _ in range(self.stages):
            # The same share of what is left in every stage: log-even, as the ladder's targets.
            target = ms * (problem.fastest[1] / ms) ** (1.0 / (self.stages - len(found) + 1))
            rows, kept = self._in_order_of_price(widths, keep, ms)
            if not len(rows):
                break
            latency = problem.predict(rows, kept)
            meets = latency <= target
            chosen = int(np.argmax(meets)) if meets.any() else int(np.argmin(latency))
            if not latency[chosen] < ms * (1.0 - 1e-9):
                break
            widths, keep, ms = rows[chosen], kept[chosen], float(latency[chosen])
            found.append((widths, keep))
        return np.stack([w for w, _ in found]), np.stack([k for _, k in found])

    def _in_order_of_price(
        self, widths: Int[np.ndarray, " groups"], keep: Bool[np.ndarray, " blocks"], ms: float
    ) -> Points:
        """Return what comes of committing the cheapest move, the two cheapest, and so on."""
        problem, space = self.problem, self.problem.space
        rows, kept, places = self._moves(widths, keep)
        saved = ms - problem.predict(rows, kept)
        harm = self.damage.at(space, rows, kept)
        harm = harm - self.damage.at(space, widths[None], keep[None])[0]
        saves = np.flatnonzero(saved > ms * 1e-9)
        # What a dropped block takes along may be worse than its own damage.
        price = np.maximum(harm[saves], 1e-12) / saved[saves]
        together: list[tuple[Int[np.ndarray, " groups"], Bool[np.ndarray, " blocks"]]] = []
        changed: set[int] = set()
        now, present = widths.copy(), keep.copy()
        for row in saves[np.argsort(price, kind="stable")]:
            place = int(places[row])
            if place in changed:
                continue
            changed.add(place)
            if place < len(widths):
                now[place] = rows[row, place]
            elif self._may_drop(present):
                present[place - len(widths)] = False
            together.append((now.copy(), present.copy()))
        if not together:
            return rows[:0], kept[:0]
        ratios = 1.0 - np.stack([w for w, _ in together]) / space.sizes
        return space.realise(ratios, ~np.stack([k for _, k in together]))

    def _moves(
        self, widths: Int[np.ndarray, " groups"], keep: Bool[np.ndarray, " blocks"]
    ) -> tuple[Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"], Int[np.ndarray, " n"]]:
        """Return the result and the place of every move: group, or groups plus block."""
        space = self.problem.space
        active = space.active(keep[None])[0]
        groups, targets = single_moves(space, widths, bound=space.smallest_widths, allowed=active)
        blocks = np.flatnonzero(keep & np.array(space.droppable, bool))
        blocks = blocks if self._may_drop(keep) else blocks[:0]
        rows = with_moves(widths, groups, targets)
        rows = np.concatenate([rows, np.repeat(widths[None], len(blocks), axis=0)])
        kept = np.repeat(keep[None], len(rows), axis=0)
        kept[len(groups) + np.arange(len(blocks)), blocks] = False
        rows, kept = space.realise(1.0 - rows / space.sizes, ~kept)
        return rows, kept, np.concatenate([groups, len(widths) + blocks])

    def _may_drop(self, keep: Bool[np.ndarray, " blocks"]) -> bool:
        most = self.problem.space.max_dropped
        return most is None or int((~keep).sum()) < most


@SAMPLERS.register("group_fisher")
@wants_damage("fisher")
def group_fisher(problem: Problem, *, seed: int, stages: int = 128) -> BaseSampler:
    """Return :class:`GroupFisher`.

    Args:
        problem: What is searched; where it has no damage, the square of the ratio is used.
        seed: At least 0; it decides how repeats are varied.
        stages: Times that prices are computed anew on the way to the fastest candidate.
    """
    return GroupFisher(problem, seed=seed, stages=stages)
