"""The samplers by name; every file of ``autoprune.strategy.samplers`` registers one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from optuna.samplers import BaseSampler

from autoprune.errors import SettingsError
from autoprune.registry import Registry
from autoprune.strategy.budget import check
from autoprune.strategy.problem import Problem

#: ``(problem, *, seed, **options)`` to an Optuna sampler; every option has a default.
SamplerFactory = Callable[..., BaseSampler]

SAMPLERS: Registry[SamplerFactory] = Registry("sampler", package="autoprune.strategy.samplers")

_DAMAGE: dict[SamplerFactory, str] = {}


def wants_damage(criterion: str) -> Callable[[SamplerFactory], SamplerFactory]:
    """Say that a sampler reads ``problem.damage``, by default from the criterion of that name.

    A run computes the damage before the search and only where it is wanted.
    """

    def mark(factory: SamplerFactory) -> SamplerFactory:
        _DAMAGE[factory] = criterion
        return factory

    return mark


def wanted_damage(name: str) -> str | None:
    """Return the criterion that the damage for a sampler comes from, ``None`` if it reads none.

    Raises:
        UnknownNameError: No such sampler.
    """
    return _DAMAGE.get(SAMPLERS[name])


def build_sampler(name: str, problem: Problem, *, seed: int, **options: Any) -> BaseSampler:
    """Return the sampler called ``name``.

    Args:
        name: One of ``SAMPLERS.names()``.
        problem: What it searches.
        seed: At least 0; the same seed and results give the same proposals.
        **options: The sampler's own keyword parameters.

    Raises:
        UnknownNameError: No such sampler.
        SettingsError: An option the sampler does not have, or a negative seed.
        BudgetError: No candidate meets the budget.
    """
    factory = SAMPLERS[name]
    parameters = inspect.signature(factory).parameters
    known = sorted(set(parameters) - {"problem", "seed"})
    foreign = sorted(set(options) - set(known))
    if foreign:
        raise SettingsError(
            f"sampler {name!r} has no option {', '.join(map(repr, foreign))}; "
            f"it has: {', '.join(known) or 'none'}"
        )
    if seed < 0:
        raise SettingsError(f"a seed is at least 0, got {seed}")
    check(problem)
    return factory(problem, seed=seed, **options)
