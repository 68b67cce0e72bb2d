"""EagleEye's random search: independent uniform ratios, scaled to the budget."""

from __future__ import annotations

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.errors import SettingsError
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate
from autoprune.strategy.targets import reach, target_ms


class EagleEye(CandidateSampler):
    """Draws every ratio uniformly below a limit, and learns nothing [Li2020eagleeye].

    The paper rejects what is not within half a per cent of the budget, which almost everything is
    not; here a draw is scaled along its ray until it meets the budget. The limit then says how
    unequal ratios may be: no group is at its narrowest unless the budget needs it. Without a
    budget every trial aims at another latency.

    That differs from the sampler ``random``, which draws the latency at random below the budget as
    well, and drops blocks; here blocks go only where channels alone do not meet the budget.

    References:
        [Li2020eagleeye] Li, Wu, Su, Wang. EagleEye: Fast Sub-net Evaluation for Efficient Neural
        Network Pruning. ECCV 2020.
    """

    def __init__(
        self, problem: Problem, *, seed: int, min_rate: float = 0.0, max_rate: float = 0.7
    ) -> None:
        """Store parameters.

        Args:
            problem: What is searched.
            seed: At least 0.
            min_rate: Least ratio of a draw.
            max_rate: Largest ratio of a draw.

        Raises:
            SettingsError: The rates do not fit.
        """
        super().__init__(problem, seed=seed)
        if not 0.0 <= min_rate < max_rate <= 1.0:
            raise SettingsError(
                "sampler 'eagleeye': expected 0 <= min_rate < max_rate <= 1, got "
                f"{min_rate} and {max_rate}"
            )
        self.min_rate = min_rate
        self.max_rate = max_rate

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return a random candidate; nothing is learned from the study."""
        space = self.problem.space
        ratios = rng.uniform(self.min_rate, self.max_rate, len(space.dimensions))
        ratios = np.minimum(ratios, 1.0 - space.smallest_widths / space.sizes)
        drawn = Candidate(tuple(ratios.tolist()), (False,) * len(space.blocks))
        return reach(self.problem, drawn, target_ms(self.problem, trial.number))


@SAMPLERS.register("eagleeye")
def eagleeye(
    problem: Problem, *, seed: int, min_rate: float = 0.0, max_rate: float = 0.7
) -> BaseSampler:
    """Return :class:`EagleEye`.

    Args:
        problem: What is searched.
        seed: At least 0.
        min_rate: Least ratio of a draw.
        max_rate: Largest ratio of a draw; the paper's is 0.4, 0.7 or 0.8 for ResNet-50 with a
            quarter, a half or three quarters of its operations removed.

    Raises:
        SettingsError: The rates do not fit.
    """
    return EagleEye(problem, seed=seed, min_rate=min_rate, max_rate=max_rate)
