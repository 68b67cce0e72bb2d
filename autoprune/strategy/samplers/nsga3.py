"""NSGA-III, Optuna's."""

from __future__ import annotations

import math
import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler

from autoprune.errors import SettingsError
from autoprune.strategy.problem import Problem
from autoprune.strategy.projected import ProjectedSampler
from autoprune.strategy.registry import SAMPLERS

#: Parts of the line between two objectives.
_PARTS_OF_TWO = 12


def _parts(objectives: int, most_points: int) -> int:
    """Return the finest division whose points are few enough, at least 1.

    >>> _parts(2, 12), _parts(3, 12), _parts(4, 12), _parts(9, 4)
    (12, 3, 2, 1)
    """
    if objectives == 2:
        return _PARTS_OF_TWO
    parts = 1
    while math.comb(parts + objectives, objectives - 1) <= most_points:
        parts += 1
    return parts


@SAMPLERS.register("nsga3")
def nsga3(
    problem: Problem,
    *,
    seed: int,
    population_size: int = 24,
    dividing_parameter: int | None = None,
    crossover_prob: float = 0.9,
    swapping_prob: float = 0.5,
    mutation_prob: float | None = None,
) -> BaseSampler:
    """Return Optuna's NSGA-III [Deb2014nsga3], projected onto the budget.

    With two objectives the reference points lie on a line; Optuna's default of four would keep a
    population in four niches, so there is one for about two members here, and with more objectives
    as near to that as a regular grid of points comes.

    Args:
        problem: What is searched.
        seed: At least 0.
        population_size: Trials per generation; the first generation is random candidates.
        dividing_parameter: Parts into which the reference points divide the line between two
            objectives; ``None`` is 12 with two of them, else the most that leave at least two
            members for a point.
        crossover_prob: Probability that a child has two parents.
        swapping_prob: Probability that a parameter comes from the second parent.
        mutation_prob: Probability that a parameter is drawn anew; ``None`` is one over their
            number.

    Raises:
        SettingsError: An option is outside its range.

    References:
        [Deb2014nsga3] Deb, Jain. An Evolutionary Many-Objective Optimization Algorithm Using
        Reference-Point-Based Nondominated Sorting Approach, Part I: Solving Problems With Box
        Constraints. IEEE Transactions on Evolutionary Computation 18(4), 2014.
    """
    parts = dividing_parameter
    if parts is None:
        parts = _parts(len(problem.objectives) + 1, population_size // 2)
    if parts < 1:
        raise SettingsError(f"dividing_parameter should be at least 1, got {parts}")

    def make(trial_seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            # Said once in the documentation, not once per trial.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return NSGAIIISampler(
                population_size=population_size,
                dividing_parameter=parts,
                crossover_prob=crossover_prob,
                swapping_prob=swapping_prob,
                mutation_prob=mutation_prob,
                seed=trial_seed,
            )

    return ProjectedSampler(problem, make, seed=seed, startup_trials=population_size)
