"""The form of example inputs as plain JSON: enough to call a network, nothing of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import pydantic
import torch
from torch import Tensor

from autoprune.errors import ExportError
from autoprune.network.inputs import Inputs

#: Number types an example input may have.
Dtype = Literal[
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
]
#: Example inputs of more elements, values or levels are taken for a damaged file.
MAX_ELEMENTS, MAX_VALUES, MAX_DEPTH = 2**30, 1000, 8
_MAX_TEXT = 1000
_MAX_INTEGER = 2**62

_Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
_Integer = Annotated[int, pydantic.Field(ge=-_MAX_INTEGER, le=_MAX_INTEGER)]


class Record(pydantic.BaseModel):
    """A part of a file: no unknown key, no conversion, no change."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class TensorSpec(Record):
    """Shape, number type and range of a tensor.

    Attributes:
        kind: Says that this is a tensor.
        shape: Its extents.
        dtype: Name of its number type as in torch: ``"float32"``.
        low: Smallest value of whole numbers (token ids); of floating-point numbers the one value
            that all positions have, ``None`` where they differ.
        high: Largest value likewise.
    """

    kind: Literal["tensor"] = "tensor"
    shape: tuple[Annotated[int, pydantic.Field(ge=1)], ...]
    dtype: Dtype
    low: _Integer | _Finite | None = None
    high: _Integer | _Finite | None = None

    @pydantic.field_validator("shape")
    @classmethod
    def _plausible(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS} elements")
        return shape

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> TensorSpec:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high come together")
        if self.low is None or self.high is None:
            return self
        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            if self.low != self.high:
                raise ValueError("low and high of floating-point numbers are the same")
            return self
        least, most = (0, 1) if dtype == torch.bool else _limits(dtype)
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if not whole or not least <= self.low <= self.high <= most:
            raise ValueError(f"low and high are whole numbers of {self.dtype}, in order")
        return self

    def example(self, generator: torch.Generator) -> Tensor:
        """Return a tensor of this form: noise within its range."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            if self.low is not None:
                return torch.full(self.shape, self.low, dtype=dtype)
            return torch.randn(self.shape, generator=generator).to(dtype)
        if self.low is None or self.high is None:
            return torch.zeros(self.shape, dtype=dtype)
        low, high = int(self.low), int(self.high)
        return torch.randint(low, high + 1, self.shape, generator=generator).to(dtype)


class ValueSpec(Record):
    """A plain value.

    Attributes:
        kind: Says that this is a value.
        value: The value itself.
    """

    kind: Literal["value"] = "value"
    value: bool | _Integer | _Finite | Annotated[str, pydantic.Field(max_length=_MAX_TEXT)] | None

    def example(self, generator: torch.Generator) -> object:
        """Return the value."""
        return self.value


class SequenceSpec(Record):
    """A tuple or list.

    Attributes:
        kind: Which of them.
        items: What is inside.
    """

    kind: Literal["tuple", "list"]
    items: tuple[Spec, ...] = pydantic.Field(max_length=MAX_VALUES)

    def example(self, generator: torch.Generator) -> tuple[Any, ...] | list[Any]:
        """Return a tuple or list of this form."""
        items = [item.example(generator) for item in self.items]
        return tuple(items) if self.kind == "tuple" else items


class MappingSpec(Record):
    """A dict; as the outermost value, keyword arguments.

    Attributes:
        kind: Says that this is a dict.
        items: What is inside, by key.
    """

    kind: Literal["dict"] = "dict"
    items: dict[Annotated[str, pydantic.Field(max_length=_MAX_TEXT)], Spec] = pydantic.Field(
        max_length=MAX_VALUES
    )

    def example(self, generator: torch.Generator) -> dict[str, Any]:
        """Return a dict of this form."""
        return {key: item.example(generator) for key, item in self.items.items()}


Spec = Annotated[
    TensorSpec | ValueSpec | SequenceSpec | MappingSpec, pydantic.Field(discriminator="kind")
]
SequenceSpec.model_rebuild()
MappingSpec.model_rebuild()


_Outermost = Annotated[SequenceSpec | MappingSpec, pydantic.Field(discriminator="kind")]


class InputsSpec(pydantic.RootModel[_Outermost]):
    """The form of everything a network is called with."""

    model_config = pydantic.ConfigDict(frozen=True, strict=True)

    @pydantic.model_validator(mode="after")
    def _limited(self) -> InputsSpec:
        if self.root.kind == "list" or not self.root.items:
            raise ValueError("a tuple of positional or a dict of keyword arguments, not empty")
        elements = 0
        for count, (depth, spec) in enumerate(_walk(self.root, 0)):
            if depth > MAX_DEPTH or count > MAX_VALUES:
                raise ValueError(f"more than {MAX_DEPTH} levels or {MAX_VALUES} values")
            elements += math.prod(spec.shape) if isinstance(spec, TensorSpec) else 0
        if elements > MAX_ELEMENTS:
            raise ValueError(f"more than {MAX_ELEMENTS} elements")
        return self

    @classmethod
    def of(cls, inputs: Inputs) -> InputsSpec:
        """Return the form of ``inputs``.

        Raises:
            ExportError: They hold something that has no such form.
        """
        spec = _spec(dict(inputs) if isinstance(inputs, Mapping) else inputs, "inputs", 0)
        try:
            return cls.model_validate(spec)
        except pydantic.ValidationError as error:
            raise ExportError(
                f"the example inputs cannot be recorded: {error.errors()[0]['msg']}; wrap the "
                "network in a module whose forward takes fewer and plainer values"
            ) from error

    def example(self) -> Inputs:
        """Return inputs of this form, the same at every call."""
        made = self.root.example(torch.Generator().manual_seed(0))
        return made if isinstance(made, dict) else tuple(made)


def _walk(spec: Spec, depth: int) -> Iterator[tuple[int, Spec]]:
    """Yield every part of a form with its depth, level by level within each branch."""
    yield depth, spec
    if isinstance(spec, SequenceSpec):
        for item in spec.items:
            yield from _walk(item, depth + 1)
    elif isinstance(spec, MappingSpec):
        for item in spec.items.values():
            yield from _walk(item, depth + 1)


def _spec(value: object, where: str, depth: int) -> Spec:
    """Return the form of one value; ``where`` names it in messages."""
    if depth > MAX_DEPTH:
        raise ExportError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    try:
        if isinstance(value, Tensor):
            return _tensor_spec(value)
        if isinstance(value, Mapping):
            items = {
                key: _spec(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()
            }
            return MappingSpec(items=items)
        if isinstance(value, (tuple, list)):
            parts = tuple(_spec(x, f"{where}[{i}]", depth + 1) for i, x in enumerate(value))
            return SequenceSpec(kind="list" if isinstance(value, list) else "tuple", items=parts)
        return ValueSpec.model_validate({"value": value})
    except pydantic.ValidationError as error:
        kind = type(value).__name__
        what = f"{kind} {value.dtype}" if isinstance(value, Tensor) else f"{kind} {str(value)[:80]}"
        raise ExportError(
            f"an example input cannot be recorded: {where} is {what}. A package records tensors "
            f"that are not empty, of {', '.join(get_args(Dtype))}, and numbers, text, True, False "
            "and None, in tuples, lists and dicts with text keys; wrap the network in a module "
            "whose forward takes such inputs"
        ) from error


def _tensor_spec(tensor: Tensor) -> TensorSpec:
    low, high = _range(tensor)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec.model_validate(
        {"shape": tuple(tensor.shape), "dtype": dtype, "low": low, "high": high}
    )


def _range(tensor: Tensor) -> tuple[int | float | None, int | float | None]:
    """Return smallest and largest value where they say something; see :class:`TensorSpec`."""
    if tensor.is_meta or tensor.is_complex() or not tensor.numel():
        return None, None
    low, high = tensor.min().item(), tensor.max().item()
    if not tensor.dtype.is_floating_point:
        fits = max(abs(int(low)), abs(int(high))) <= _MAX_INTEGER
        return (int(low), int(high)) if fits else (None, None)
    return (low, high) if low == high and math.isfinite(low) else (None, None)


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return int(info.min), int(info.max)
