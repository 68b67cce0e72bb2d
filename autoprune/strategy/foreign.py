"""Samplers that are not registered: Optuna's, OptunaHub's and the user's own, by path."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, QMCSampler

from autoprune.errors import AutopruneError, SettingsError
from autoprune.network.factory import FactoryCall, find, parse_call
from autoprune.strategy.problem import Problem
from autoprune.strategy.projected import ProjectedSampler

_HUB = "optunahub"


def is_path(name: str) -> bool:
    """Return whether a sampler's name is a path: ``module:Class``, ``file.py:factory``, ...

    >>> is_path("optuna.samplers:QMCSampler"), is_path("tpe")
    (True, False)
    """
    return ":" in name


def absolute_path(name: str) -> str:
    """Return a sampler's name with its file, if it has one, by absolute path.

    >>> absolute_path("tpe")
    'tpe'
    """
    head, separator, rest = name.partition(".py:")
    return f"{Path(head).expanduser().absolute()}{separator}{rest}" if separator else name


def foreign_factory(spec: str) -> Callable[..., BaseSampler]:
    """Return a sampler's factory by path; code of the user runs.

    What is found is called with the run's options. A function or class with a parameter
    ``problem`` is a factory as registered ones are, and what it returns is used as it is. Anything
    else has to return an Optuna sampler, which is wrapped in
    :class:`~autoprune.strategy.projected.ProjectedSampler`; a parameter ``seed`` is given the seed.

    Optuna's own samplers keep what they learn in the study, so that a run can be resumed as if it
    had not stopped. Others may keep it in themselves: of those one object serves the whole run, and
    a resumed run starts with a new one.

    Args:
        spec: ``package.module:Class``, ``file.py:factory`` or ``optunahub:PACKAGE``, with literal
            arguments in brackets behind if wanted; ``optunahub:PACKAGE.Class`` where a package has
            several samplers.

    Raises:
        SettingsError: There is nothing of that name, or it cannot be called.
    """
    call = parse_call(spec, error=SettingsError)
    if call is None:
        raise SettingsError(
            f"{spec!r} is no sampler: write package.module:Class, file.py:factory or "
            "optunahub:PACKAGE"
        )
    target = _of_hub(call) if call.head == _HUB else find(call, error=SettingsError)
    if not callable(target):
        raise SettingsError(f"{call.location} is no class or function, but {target!r:.60}")
    bound = (
        functools.partial(target, *call.args, **call.kwargs) if call.args or call.kwargs else target
    )
    if "problem" in inspect.signature(bound).parameters:
        return bound
    return _Wrapped(call.location, bound)


class _Wrapped:
    """A factory around one that makes Optuna samplers; its signature is that one's."""

    def __init__(self, location: str, target: Callable[..., Any]) -> None:
        self.location = location
        self.target = target
        self.__wrapped__ = target
        self.__signature__ = inspect.signature(target)

    def __call__(self, problem: Problem, *, seed: int, **options: Any) -> BaseSampler:
        """Return the sampler, projected onto the budget.

        Raises:
            SettingsError: It cannot be made, or cannot propose for so many objectives.
        """
        make = functools.partial(self._make, options)
        sample = make(seed)
        self._try(make(seed), problem)
        if isinstance(sample, QMCSampler):
            # Its trials are one sequence, which a seed per trial would tear apart.
            return ProjectedSampler(problem, lambda _: make(seed), seed=seed, startup_trials=0)
        if type(sample).__module__.startswith("optuna."):
            return ProjectedSampler(problem, make, seed=seed, startup_trials=0)
        return ProjectedSampler(problem, lambda _: sample, seed=seed, startup_trials=0)

    def _make(self, options: dict[str, Any], seed: int) -> BaseSampler:
        parameters = self.__signature__.parameters
        takes_seed = "seed" in parameters or any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                made = self.target(**options, **({"seed": seed} if takes_seed else {}))
        except AutopruneError:
            raise
        except Exception as error:
            raise SettingsError(
                f"{self.location} failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(made, BaseSampler):
            raise SettingsError(
                f"{self.location} returned a {type(made).__name__}; expected a sampler of Optuna, "
                "or give it a parameter called problem"
            )
        return made

    def _try(self, sampler: BaseSampler, problem: Problem) -> None:
        """Ask for two candidates in a study of its own: what cannot propose says so at once."""
        count = 1 + len(problem.objectives)
        study = optuna.create_study(directions=["minimize"] * count, sampler=sampler)
        try:
            for value in (1.0, 2.0):
                study.tell(study.ask(problem.space.distributions()), [value] * count)
        except Exception as error:
            raise SettingsError(
                f"{self.location} cannot propose for this search, whose objectives are loss and "
                f"{', '.join(problem.goals.costs)}: {error}; of samplers with one objective, "
                "'cmaes' and 'gp' are built in"
            ) from error


def _of_hub(call: FactoryCall) -> object:
    """Return a sampler class of a package of OptunaHub, which is downloaded on first use."""
    try:
        hub = importlib.import_module(_HUB)
    except ModuleNotFoundError:
        raise SettingsError(
            f"{call.location} needs the package optunahub: `pip install optunahub`; it downloads "
            "the sampler's code from hub.optuna.org and runs it"
        ) from None
    package, _, wanted = call.name.partition(".")
    try:
        module = hub.load_module(f"samplers/{package}")
    except Exception as error:
        raise SettingsError(f"OptunaHub has no sampler {package!r} for us: {error}") from error
    found = _samplers_in(module)
    if wanted in found:
        return found[wanted]
    if not wanted and len(found) == 1:
        return next(iter(found.values()))
    names = ", ".join(f"{_HUB}:{package}.{name}" for name in found) or "none"
    raise SettingsError(f"which sampler of OptunaHub's {package}? It has: {names}")


def _samplers_in(module: ModuleType) -> dict[str, object]:
    """Return the samplers that a module offers, by name."""
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    offered = {name: getattr(module, name, None) for name in names}
    return {
        name: value
        for name, value in offered.items()
        if isinstance(value, type)
        and issubclass(value, BaseSampler)
        and not value.__module__.startswith("optuna.")
    }
