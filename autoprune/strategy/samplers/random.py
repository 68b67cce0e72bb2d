"""Random directions, scaled to random latencies: the baseline every method has to beat."""

from __future__ import annotations

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autoprune.strategy.problem import Problem
from autoprune.strategy.rays import random_candidate
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.space import Candidate


class RandomRays(CandidateSampler):
    """Draws candidates from :func:`~autoprune.strategy.rays.random_candidate`.

    EagleEye's random search [Li2020eagleeye], with scaling along the ray in place of rejection
    and the latency of the device in place of FLOPs.

    References:
        [Li2020eagleeye] Li, Wu, Su, Wang. EagleEye: Fast Sub-net Evaluation for Efficient Neural
        Network Pruning. ECCV 2020.
    """

    def propose(self, study: Study, trial: FrozenTrial, rng: np.random.Generator) -> Candidate:
        """Return a random candidate; nothing is learned from the study."""
        return random_candidate(self.problem, rng)


@SAMPLERS.register("random")
def random(problem: Problem, *, seed: int) -> BaseSampler:
    """Return :class:`RandomRays`.

    Args:
        problem: What is searched.
        seed: At least 0.
    """
    return RandomRays(problem, seed=seed)
