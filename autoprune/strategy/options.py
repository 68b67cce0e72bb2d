"""Options of samplers from the command line, checked against what the sampler takes."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic

from autoprune.errors import SettingsError
from autoprune.network.factory import nearest

#: What a value of an option may be: it is stored in ``run.json``.
Value = bool | int | float | str | None

#: What every sampler is given by the run itself.
_GIVEN = ("problem", "seed")

#: Words for what Python writes with a capital.
_WORDS = {"true": True, "false": False, "none": None}


def parse_options(texts: Sequence[str]) -> dict[str, Value]:
    """Return the options that ``name=value`` texts give.

    >>> parse_options(["population_size=40", "mutation_prob=none", "qmc_type=halton"])
    {'population_size': 40, 'mutation_prob': None, 'qmc_type': 'halton'}

    Args:
        texts: Each a name, ``=`` and a number, ``true``, ``false``, ``none`` or any other text.

    Raises:
        SettingsError: Texts of another form, or names given twice; all are listed.
    """
    options: dict[str, Value] = {}
    faults = []
    for text in texts:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not name.isidentifier():
            faults.append(f"{text!r} is not of the form name=value, such as population_size=40")
        elif name in options:
            faults.append(f"{name!r} is given twice")
        else:
            options[name] = _value(value)
    if faults:
        raise SettingsError("sampler options: " + "; ".join(faults))
    return options


def check_options(name: str, factory: Callable[..., Any], options: Mapping[str, object]) -> None:
    """Check options against the parameters of a sampler's factory.

    Args:
        name: The sampler's name, for messages.
        factory: What will be called with them.
        options: Values by name.

    Raises:
        SettingsError: Options that it does not have, or whose values are of another type; all are
            listed.
    """
    parameters = inspect.signature(factory).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    known = {
        key: parameter
        for key, parameter in parameters.items()
        if key not in _GIVEN and parameter.kind in (parameter.KEYWORD_ONLY, _POSITIONAL)
    }
    faults = []
    for key, value in options.items():
        if key in known:
            faults += _mismatch(key, _annotation(factory, known[key]), value)
        elif key in _GIVEN or inspect.Parameter.VAR_KEYWORD not in kinds:
            faults.append(f"no option {key!r}{nearest(key, known)}")
    if faults:
        listed = ", ".join(sorted(known)) or "none"
        raise SettingsError("\n  ".join([f"sampler {name!r} has: {listed}", *faults]))


_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _value(text: str) -> Value:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, Value) else text


def _annotation(factory: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return a parameter's type; ``Any`` where it is not known while the program runs."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        code = inspect.unwrap(factory)
        code = code.__init__ if isinstance(code, type) else code  # type: ignore[misc]  # its own
        try:
            annotation = eval(annotation, dict(vars(typing)) | getattr(code, "__globals__", {}))
        except (NameError, TypeError, AttributeError):  # imported for type checkers only
            return Any
    return Any if annotation is inspect.Parameter.empty else annotation


def _mismatch(key: str, annotation: Any, value: object) -> list[str]:
    """Return one line if ``value`` is not of the type, nothing if it is."""
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
            annotation, config=pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)
        )
    except pydantic.errors.PydanticUserError:  # a class that brings its own configuration
        return []
    try:
        adapter.validate_python(value)
    except pydantic.ValidationError:
        expected = getattr(annotation, "__name__", "") if isinstance(annotation, type) else ""
        return [f"{key} should be {expected or annotation}, got {value!r}"]
    return []
