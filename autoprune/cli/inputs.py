"""Example inputs as they are written on the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoprune.errors import ModelError, SettingsError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autoprune.network.inputs import Inputs

#: What classifiers of photos take where the model does not say otherwise.
_PHOTO = (3, 224, 224)

_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_][\w.]*):)?(?P<sizes>[^:=]+)(?::(?P<dtype>\w+))?")
_VALUE = re.compile(r"(?P<name>[A-Za-z_][\w.]*)=(?P<value>.+)", re.DOTALL)
_SIZES = re.compile(r"[1-9]\d*(?:[x,][1-9]\d*)*")
_TYPES = (
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "complex64", "complex128"),
)
_HELP = (
    "write [NAME:]SHAPE[:DTYPE] such as 1x3x224x224 or input_ids:1x128:int64, NAME=VALUE such as "
    "scale=0.5, or file.py:function for a function that returns all of them"
)


def example_inputs(spec: str, module: nn.Module, data: str | None, texts: Sequence[str]) -> Inputs:
    """Return the task's inputs, the given ones, or what the model is known to take.

    Args:
        spec: What the user called the model.
        module: The model.
        data: Name of a task whose inputs are wanted.
        texts: Inputs as in :func:`parsed_inputs`.

    Raises:
        SettingsError: Both ``data`` and ``texts`` are given, or a text has no known form.
        TaskError: There is no such task.
        ModelError: A function that should return the inputs fails.
    """
    import torch

    from autoprune.network.huggingface import example_inputs as known_inputs
    from autoprune.network.huggingface import is_pretrained
    from autoprune.tasks.load import load_task

    if data is not None and texts:
        raise SettingsError("give --data or --input, not both")
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(dtypes, torch.float32)
    if texts:
        return parsed_inputs(texts, dtype)
    if data is not None or spec == "digits":
        return load_task(data or "digits").example_inputs()
    if is_pretrained(module):
        return known_inputs(module)
    configured = getattr(module, "default_cfg", None) or {}  # timm's
    size = tuple(configured.get("input_size", _PHOTO))
    return (torch.randn((1, *size), generator=torch.Generator().manual_seed(0)).to(dtype),)


def parsed_inputs(texts: Sequence[str], floating: torch.dtype) -> Inputs:
    """Return example inputs in the form that a model is called with.

    Numbers are random; whole numbers and truth values are 0 or 1. A dotted name is an entry of a
    mapping (``data.image:1x3x8x8``), or of a list where all are numbers (``images.0:3x8x8``).

    Args:
        texts: ``[NAME:]SHAPE[:DTYPE]`` or ``NAME=VALUE`` each, or a single function by name.
        floating: Type of the numbers where none is given.

    Raises:
        SettingsError: A text has none of the forms.
        ModelError: The function fails.
    """
    made = _from_function(texts)
    if made is not None:
        return made
    named: dict[str, Any] = {}
    positional: list[Any] = []
    for text in texts:
        name, value = _parsed(text, floating)
        if name is None:
            positional.append(value)
        elif name in named:
            raise SettingsError(f"--input names {name!r} twice")
        else:
            named[name] = value
    if positional and named:
        raise SettingsError(
            f"--input takes names for all inputs or for none; {', '.join(named)} have one, "
            f"{len(positional)} others have not"
        )
    return _nested(named) if named else tuple(positional)


def _from_function(texts: Sequence[str]) -> Inputs | None:
    """Return what the only text's function returns, ``None`` if it names none."""
    from torch import Tensor

    from autoprune.network.factory import call_factory, parse_call

    if len(texts) != 1 or _is_shape(texts[0]) or _VALUE.fullmatch(texts[0]):
        return None
    call = parse_call(texts[0], error=SettingsError)
    if call is None or not (call.in_file or "." in call.head):
        return None
    made = call_factory(call, object, error=ModelError)
    if isinstance(made, Tensor):
        return (made,)
    if isinstance(made, (tuple, Mapping)):
        return made
    raise ModelError(
        f"{call.location} returned {type(made).__name__}; expected a tensor, a tuple of positional "
        "arguments, or a dict of keyword arguments"
    )


def _is_shape(text: str) -> bool:
    match = _SHAPE.fullmatch(text)
    return match is not None and _SIZES.fullmatch(match["sizes"]) is not None


def _parsed(text: str, floating: torch.dtype) -> tuple[str | None, Any]:
    """Return the name, if there is one, and the value of one input."""
    text = text.strip()
    value = _VALUE.fullmatch(text)
    if value is not None:
        try:
            return value["name"], ast.literal_eval(value["value"])
        except (ValueError, SyntaxError):
            raise SettingsError(
                f"--input {text!r}: {value['value']!r} is no Python literal; {_HELP}"
            ) from None
    match = _SHAPE.fullmatch(text)
    if match is None or not _is_shape(text):
        raise SettingsError(f"--input takes positive whole numbers as shape, got {text!r}; {_HELP}")
    sizes = tuple(int(size) for size in re.split("[x,]", match["sizes"]))
    return match["name"], _random(sizes, match["dtype"], floating)


def _random(sizes: tuple[int, ...], dtype: str | None, floating: torch.dtype) -> torch.Tensor:
    """Return random numbers of a type by its name."""
    import torch

    if dtype is not None and dtype not in _TYPES:
        raise SettingsError(f"--input names the type {dtype!r}; it is one of {', '.join(_TYPES)}")
    kind: torch.dtype = floating if dtype is None else getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point or kind.is_complex:
        return torch.randn(sizes, generator=generator).to(kind)
    return torch.randint(0, 2, sizes, generator=generator).to(kind)


def _nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping whose dotted names are mappings and lists inside it."""
    result: dict[str, Any] = {}
    for name, value in named.items():
        *outer, last = name.split(".")
        place = result
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise SettingsError(f"--input gives {part!r} both a value and entries")
        place[last] = value
    return {name: _listed(value) for name, value in result.items()}


def _listed(value: Any) -> Any:
    """Return a list for a mapping from 0, 1, 2 and so on."""
    if not isinstance(value, dict):
        return value
    entries = {key: _listed(entry) for key, entry in value.items()}
    if sorted(entries) == sorted(map(str, range(len(entries)))):
        return [entries[str(index)] for index in range(len(entries))]
    return entries
