"""The samplers by name; every file of ``autoprune.strategy.samplers`` registers one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from optuna.samplers import BaseSampler

from autoprune.errors import SettingsError
from autoprune.registry import Registry
from autoprune.strategy.budget import check
from autoprune.strategy.options import check_options
from autoprune.strategy.problem import Problem
from autoprune.strategy.rotation import Direction, Rotation, directions
from autoprune.strategy.sampler import CandidateSampler
from autoprune.strategy.warm_start import WarmStart

#: ``(problem, *, seed, **options)`` to an Optuna sampler; every option has a default.
SamplerFactory = Callable[..., BaseSampler]

SAMPLERS: Registry[SamplerFactory] = Registry("sampler", package="autoprune.strategy.samplers")

#: Criterion of the damage that a warm start reads where its sampler wants none.
WARM_START_DAMAGE = "obs"

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
        AutopruneError: No such sampler.
    """
    factory = sampler_factory(name)
    return _DAMAGE.get(factory) if isinstance(factory, Hashable) else None


def sampler_factory(name: str) -> SamplerFactory:
    """Return the factory of a sampler, registered or by path.

    Args:
        name: One of ``SAMPLERS.names()``, or a path as :func:`foreign_factory
            <autoprune.strategy.foreign.foreign_factory>` takes it: ``optuna.samplers:QMCSampler``.

    Raises:
        UnknownNameError: No sampler of that name is registered.
        SettingsError: There is nothing at that path.
    """
    # What wraps foreign samplers is built on this module.
    from autoprune.strategy.foreign import foreign_factory, is_path

    return foreign_factory(name) if is_path(name) else SAMPLERS[name]


def check_sampler(name: str, options: Mapping[str, object]) -> None:
    """Check that there is such a sampler and that it takes such options.

    Raises:
        UnknownNameError: No sampler of that name is registered.
        SettingsError: There is nothing at that path, or options are wrong; all are listed.
    """
    check_options(name, sampler_factory(name), options)


def build_sampler(
    name: str, problem: Problem, *, seed: int, warm_start: int = 0, **options: Any
) -> BaseSampler:
    """Return the sampler called ``name``.

    Where there are other costs than the latency, samplers that read all objectives of a study do
    so; strategies of one cost are turned through the directions of all by
    :class:`~autoprune.strategy.rotation.Rotation`.

    Args:
        name: As for :func:`sampler_factory`.
        problem: What it searches.
        seed: At least 0; the same seed and results give the same proposals.
        warm_start: How many candidates of least expected damage come first, see
            :class:`~autoprune.strategy.warm_start.WarmStart`.
        **options: The sampler's own keyword parameters.

    Raises:
        UnknownNameError: No such sampler.
        SettingsError: An option the sampler does not have, or a negative seed.
        BudgetError: No candidate meets the budget.
    """
    factory = sampler_factory(name)
    check_options(name, factory, options)
    if seed < 0:
        raise SettingsError(f"a seed is at least 0, got {seed}")
    check(problem)

    def make(part: Problem) -> BaseSampler:
        sampler = factory(part, seed=seed, **options)
        if not isinstance(sampler, BaseSampler):
            raise SettingsError(
                f"sampler {name!r}: expected a sampler of Optuna, got a {type(sampler).__name__}"
            )
        return sampler

    sampler = make(problem)
    if problem.costs:
        if isinstance(sampler, CandidateSampler) and not sampler.joint:
            sampler = Rotation(problem, make, seed=seed)
        # Anchors lie where all costs fall alike.
        problem = Direction(problem, directions(len(problem.costs))[0]).view
    return WarmStart(problem, sampler, count=warm_start) if warm_start > 0 else sampler
