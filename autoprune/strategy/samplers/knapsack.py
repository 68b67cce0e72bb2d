"""Damage curves, corrected by what was evaluated, in an exact knapsack: the default."""

from __future__ import annotations

from optuna.samplers import BaseSampler

from autoprune.strategy.knapsack_sampler import KnapsackSampler, KnapsackSettings
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS, wants_damage
from autoprune.strategy.surrogate import Prior


@wants_damage("obs")
@SAMPLERS.register("knapsack")
def knapsack(
    problem: Problem,
    *,
    seed: int,
    anchors: int = KnapsackSettings.anchors,
    draws: int = KnapsackSettings.draws,
    switches: int = KnapsackSettings.switches,
    gaps: int = KnapsackSettings.gaps,
    temper: float = KnapsackSettings.temper,
    exploration: float = KnapsackSettings.exploration,
    at_budget: float = KnapsackSettings.at_budget,
    misfit: float = Prior.misfit,
) -> BaseSampler:
    """Return :class:`~autoprune.strategy.knapsack_sampler.KnapsackSampler` on structured OBS.

    Args:
        problem: What is searched.
        seed: At least 0.
        anchors: Latencies at which the damage curves alone decide, before anything is learned;
            half as many where there is a budget.
        draws: Solutions per proposal for coefficients drawn from the posterior.
        switches: Changes per proposal of candidates of the front.
        gaps: Widest gaps of the front that are solved for.
        temper: Factor of the deviations of drawn coefficients.
        exploration: Fraction of proposals that no damage makes, from the 20th trial on.
        at_budget: Fraction of the drawn solutions at the budget where there is one, and of changes
            that are made to the best candidates within it.
        misfit: Standard deviation of what damage cannot tell, in log-loss.
    """
    settings = KnapsackSettings(
        anchors=anchors,
        draws=draws,
        switches=switches,
        gaps=gaps,
        temper=temper,
        exploration=exploration,
        at_budget=at_budget,
    )
    return KnapsackSampler(problem, seed=seed, settings=settings, prior=Prior(misfit=misfit))
