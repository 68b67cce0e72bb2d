"""Which weights read the units of a group, and what they read while the network runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.errors import PruningError
from autoprune.network.call import base_name
from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.network.inputs import evaluating
from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A weight that multiplies the units of a group.

    Attributes:
        member: The places of the units in the weight's input dimension.
        conv_groups: Groups of a convolution; the input dimension of its weight then holds the
            channels of one of them, and unit positions mean the same in each.
        transposed: A transposed convolution, whose weight has the input dimension first.
    """

    member: ParamSlice
    conv_groups: int = 1
    transposed: bool = False

    @property
    def path(self) -> str:
        """Parameter name of the weight."""
        return self.member.path

    @property
    def dim(self) -> int:
        """Input dimension of the weight."""
        return self.member.dim

    @property
    def indices(self) -> Int[np.ndarray, "units positions"]:
        """Positions of each unit in that dimension."""
        return self.member.indices

    @property
    def owner(self) -> str:
        """Module path of the layer."""
        return self.path.rpartition(".")[0]


def readers(network: Network, group: ChannelGroup) -> tuple[Reader, ...]:
    """Return the weights that read the units of a group; none where not all of them are known.

    Known are linear layers, convolutions of every kind, the projections of multi-head attention,
    and the transposed linear layers of ``transformers``. A depthwise convolution is one of the
    layers that carry the units and reads none of another's. Nor does a table that is looked up
    count, even where it is the weight of a layer besides (the output of a language model): what is
    changed for one of its uses would be changed for the other. A weight of two or more dimensions
    in any other kind of module, or one that such a module shares, has a role that is not known,
    and then so are the group's readers.
    """
    owners = _owners(network.model)
    found = []
    for member in group.members:
        known = owners.get(member.path)
        if known is None or known.weight.ndim < 2:  # buffers, biases, affine parameters
            continue
        dims = {_input_dim(module, name) for module, name in known.places}
        if None in dims:
            return ()
        if member.dim in dims and -1 not in dims:
            if len(dims) > 1:
                return ()
            module, _ = known.places[0]
            if isinstance(module, _ConvNd):
                found.append(Reader(member, module.groups, module.transposed))
            else:
                found.append(Reader(member))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product with a weight; the input is ``[positions, channels]``.

    Attributes:
        dim: Dimension of the parameter that is summed over.
    """

    dim: int


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution with a weight; the input is ``[n, channels, *spatial]``.

    Attributes:
        dim: Dimension of the parameter that holds input channels.
        stride: Per spatial dimension.
        padding: Likewise.
        dilation: Likewise.
        groups: Its groups.
        transposed: Whether it is a transposed convolution.
    """

    dim: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool


#: What a weight is told to have read: its path, the input, and by which operation.
Listen = Callable[[str, Shaped[Tensor, "..."], Product | Convolution], None]


@dataclasses.dataclass(frozen=True)
class Read:
    """One operation in which a known weight multiplied an input.

    Attributes:
        path: Parameter name.
        input: What it multiplied.
        how: The operation; says what the dimensions of the input are.
        whole: Whether all of the parameter took part, or only some of its outputs.
        turned: Whether a product has its outputs in front of its positions.
    """

    path: str
    input: Shaped[Tensor, "..."]
    how: Product | Convolution
    whole: bool
    turned: bool = False


class Weights:
    """Recognises parameters in the operands of ATen operators, by their memory.

    A transpose, a reshape or a slice of a parameter lies in the parameter's own memory, so it is
    recognised whichever module or function uses it. A copy is not.
    """

    def __init__(self, model: nn.Module, paths: Collection[str]) -> None:
        """Index the parameters.

        Raises:
            PruningError: A path names no parameter.
        """
        named = named_parameters(model)
        unknown = sorted(set(paths) - named.keys())
        if unknown:
            raise PruningError(f"the model has no parameter {unknown[0]!r}; trace it again")
        self._places: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for path in paths:
            tensor = named[path]
            self._places[tensor.untyped_storage().data_ptr()].append((path, tensor))

    def read(self, name: str, args: Sequence[Any]) -> Read | None:
        """Return what a known weight reads in an operator call, ``None`` where there is none.

        Args:
            name: Name of the operator without overload, such as ``"addmm"``.
            args: Its positional arguments.
        """
        if name in _CONVOLUTIONS:
            return self._convolution(args)
        first = _PRODUCTS.get(name)
        if first is None:
            return None
        left, right = args[first], args[first + 1]
        if name == "linear":  # reaches here only where autograd is switched off altogether
            return self._product(right.t(), left.flatten(0, -2))
        found = self._product(right, left)
        if found is None:
            found = self._product(left.transpose(-1, -2), right.transpose(-1, -2))
            return None if found is None else dataclasses.replace(found, turned=True)
        return found

    def _convolution(self, args: Sequence[Any]) -> Read | None:
        found = self._find(args[1])
        if found is None or found[1].shape != args[1].shape:
            return None
        stride, padding, dilation = (tuple(args[place]) for place in (3, 4, 5))
        transposed, groups = bool(args[6]), int(args[8])
        dim = 0 if transposed else 1
        how = Convolution(dim, stride, padding, dilation, groups, transposed)
        return Read(found[0], args[0], how, whole=True)

    def _product(self, weight: Tensor, inputs: Tensor) -> Read | None:
        """Return the read if ``weight``, ``[..., channels, outputs]``, is one.

        Args:
            weight: Operand that may be a weight.
            inputs: The other, ``[..., positions, channels]``.
        """
        found = self._find(weight)
        if found is None:
            return None
        path, parameter = found
        batches = weight.shape[:-2]
        if any(n > 1 and step for n, step in zip(batches, weight.stride(), strict=False)):
            return None  # a stack of weights, each with an input of its own
        matrix = weight[(0,) * len(batches)]
        dims = [
            dim
            for dim, size in enumerate(parameter.shape)
            if size == matrix.shape[0] and parameter.stride(dim) == matrix.stride(0)
        ]
        if not dims:
            return None
        whole = matrix.numel() == parameter.numel()
        return Read(path, inputs.reshape(-1, inputs.shape[-1]), Product(dims[0]), whole)

    def _find(self, operand: Tensor) -> tuple[str, Tensor] | None:
        """Return the parameter in whose memory an operand lies."""
        for path, parameter in self._places.get(operand.untyped_storage().data_ptr(), ()):
            start = parameter.storage_offset()
            if start <= operand.storage_offset() < start + parameter.numel():
                return path, parameter
        return None


#: Convolutions as they reach a dispatch mode.
_CONVOLUTIONS = frozenset({"convolution", "convolution_overrideable", "_convolution"})

#: Matrix products, with the place of the first factor among the arguments.
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "linear": 0}


@contextlib.contextmanager
def listening(model: nn.Module, paths: Collection[str], listen: Listen) -> Iterator[None]:
    """Call ``listen`` whenever one of the named weights multiplies an input, while inside.

    The model runs in eval mode without gradients, with fused attention written out, and computes
    what it always does. Inputs are not copied: keep what is computed from them, not themselves.

    Args:
        model: Whose forward passes are listened to.
        paths: Parameter names of the weights.
        listen: Called with the path, the input and the operation; for a weight that is used in
            parts (queries apart from keys) once for each part.

    Raises:
        PruningError: A path names no parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with listening(model, ["1.weight"], lambda path, x, how: print(path, tuple(x.shape))):
        ...     _ = model(torch.zeros(5, 2))
        1.weight (5, 3)
    """
    weights = Weights(model, paths)
    with evaluating(model), torch.no_grad(), _Listener(weights, listen):
        yield


class _Listener(TorchDispatchMode):
    """Tells what the known weights read."""

    def __init__(self, weights: Weights, listen: Listen) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.weights = weights
        self.listen = listen

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        read = self.weights.read(base_name(func), args)
        if read is not None:
            self.listen(read.path, read.input, read.how)
        return func(*args, **(kwargs or {}))


def rows_of(
    inputs: Float[Tensor, "..."], how: Product | Convolution
) -> Float[Tensor, "positions channels"]:
    """Return what was read with one row per position: of the batch, of space or of the sequence."""
    if isinstance(how, Product):
        return inputs
    return inputs.movedim(1, -1).reshape(-1, inputs.shape[1])


@dataclasses.dataclass(frozen=True)
class _Owned:
    """A parameter with every module attribute that holds it."""

    weight: Tensor
    places: list[tuple[nn.Module, str]]


def _owners(model: nn.Module) -> dict[str, _Owned]:
    """Return who holds each parameter, by each of its names."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places[id(parameter)].append((module, name))
    named = named_parameters(model)
    return {path: _Owned(weight, places[id(weight)]) for path, weight in named.items()}


def _input_dim(module: nn.Module, name: str) -> int | None:
    """Return the dimension of a module's weight that reads, -1 for a table that is only looked up.

    ``None`` where it is not known.
    """
    if isinstance(module, _ConvNd):
        return 0 if module.transposed else 1
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)):
        return 1
    if isinstance(module, nn.Embedding):
        return -1
    kind = type(module)
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):
        return 0
    return None
