"""What exported programs are compared on: the example inputs at several batch sizes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from autoprune.errors import ExportError
from autoprune.network.call import tensors_in

Value = TypeVar("Value")

#: Largest difference to PyTorch's outputs that an export may have.
TOLERANCE = 1e-4


def batch_of(tensors: Iterable[Tensor]) -> int:
    """Return the batch size of example inputs.

    Raises:
        ExportError: None of them has a batch dimension.
    """
    for tensor in tensors:
        if tensor.ndim:
            return int(tensor.shape[0])
    raise ExportError(
        "an export takes example inputs among which are tensors with a batch dimension; "
        "wrap the network in a module whose forward takes such tensors"
    )


def sizes_to_compare(batch: int, *, dynamic: bool) -> tuple[int, ...]:
    """Return the batch sizes at which an export is compared."""
    return tuple(dict.fromkeys([batch, 1, batch + 1] if dynamic else [batch]))


def resized(inputs: Value, batch: int, size: int) -> Value:
    """Return inputs of any form with ``size`` instead of ``batch`` samples, repeated or cut off."""
    index = torch.arange(size) % batch

    def picked(tensor: Tensor) -> Tensor:
        return tensor[index] if has_batch(tensor, batch) else tensor

    sized: Value = _pytree.tree_map_only(Tensor, picked, inputs)
    return sized


def has_batch(tensor: Tensor, batch: int) -> bool:
    """Return whether a tensor's first dimension is the batch."""
    return bool(tensor.ndim) and tensor.shape[0] == batch


def difference(
    what: str, batch: int, got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]
) -> float:
    """Return the largest absolute difference of outputs; NaN where one is not a number.

    Args:
        what: What computed ``got``, for the message.
        batch: The batch size, for the message.
        got: Outputs of the export.
        wanted: PyTorch's outputs.

    Raises:
        ExportError: The shapes differ.
    """
    if [x.shape for x in got] != [x.shape for x in wanted]:
        raise ExportError(
            f"at batch size {batch} {what} gives outputs of shapes {[x.shape for x in got]}, "
            f"PyTorch {[x.shape for x in wanted]}; dynamic_batch=False exports one batch size"
        )
    differences = [
        np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
        for a, b in zip(got, wanted, strict=True)
    ]
    return float(np.max(differences, initial=0.0))


def compared(
    what: str,
    inputs: Value,
    *,
    dynamic: bool,
    wanted: Callable[[Value], Iterable[Tensor]],
    got: Callable[[Value, int], Sequence[np.ndarray]],
) -> tuple[float, tuple[int, ...]]:
    """Return the largest absolute difference of outputs, NaN where one is not a number.

    Args:
        what: What computes ``got``, for the message.
        inputs: Inputs of any form, the batch first.
        dynamic: Compare at other batch sizes too.
        wanted: Returns PyTorch's outputs.
        got: Returns the export's outputs; it is told the batch size as well.

    Returns:
        The difference, and the batch sizes that were compared.

    Raises:
        ExportError: The shapes differ.
    """
    batch = batch_of(tensors_in(inputs))
    sizes = sizes_to_compare(batch, dynamic=dynamic)
    largest = 0.0
    for size in sizes:
        sample = resized(inputs, batch, size)
        with torch.no_grad():
            right, found = arrays(wanted(sample)), got(sample, size)
        largest = float(np.maximum(largest, difference(what, size, found, right)))
    return largest, sizes


def arrays(tensors: Iterable[Tensor]) -> list[np.ndarray]:
    """Return tensors as arrays; what numpy has no type for in single precision."""
    return [x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy() for x in tensors]


def check_tolerance(what: str, largest: float, tolerance: float) -> None:
    """Raise :class:`ExportError` unless ``largest`` is at most ``tolerance``."""
    if not largest <= tolerance:
        raise ExportError(
            f"{what} differs from PyTorch by {largest:.3g}, more than {tolerance:g}; "
            "the file was not written. Networks in half precision, or with outputs of large "
            "magnitude, may need a larger tolerance="
        )


def root_cause(error: BaseException) -> str:
    """Return the first line of the error that started it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what torch's own exporter warns of and no user can act on.

    A deprecation inside it, and a second input whose batch dimension is called like the first's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning
        )
        warnings.filterwarnings("ignore", message=r".*The axis name: batch will not be used")
        yield
