r"""The network with absolute weights and without nonlinearity: how much can flow through a unit.

.. math:: R = 1^T \Bigl( \prod_l |W_l| \Bigr) 1

needs no data. The model itself is run on ones, with everything replaced that is not linear on
positive numbers: normalisations only scale, and what saturates passes on.

References:
    [Tanaka2020synflow] H. Tanaka et al. Pruning neural networks without any data by iteratively
    conserving synaptic flow. NeurIPS 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from autoprune.network.call import tensors_in
from autoprune.network.inputs import Inputs, evaluating
from autoprune.network.network import Network


def absolute_model(network: Network) -> nn.Module:
    """Return a copy of the model with absolute parameters in double precision.

    Running means become zero, so that BatchNorm in eval mode only scales and adds.
    """
    model = copy.deepcopy(network.model).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
        for name, buffer in model.named_buffers():
            if name.rpartition(".")[2] == "running_mean":
                buffer.zero_()
    return model.requires_grad_(False)


def ones_like(inputs: Inputs) -> Inputs:
    """Return one sample of ones for every floating-point input; whole numbers stay."""

    def one(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        return torch.ones_like(leaf, dtype=torch.float64)

    found: Inputs = _pytree.tree_map_only(Tensor, one, inputs)
    return found


def outputs_of(output: Any) -> list[Float[Tensor, "..."]]:
    """Return the floating-point tensors that a model returned."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


@contextmanager
def linear_pass(model: nn.Module) -> Iterator[None]:
    """Let every nonlinearity of ``model`` be linear on positive numbers, while inside.

    Layer, group, instance and root-mean-square normalisation multiply by their scale and add their
    shift. What is bounded (ReLU6, tanh, clamps) passes its input on. ReLU, GELU, SiLU and the like
    stay: they are nearly linear there. Attention is written out.
    """
    with evaluating(model), torch.enable_grad(), _Linear():
        yield


class _Linear(TorchFunctionMode):
    """Replaces functions by what they are without their nonlinearity."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _PASSING:
            return args[0] if args else given["input"]
        if func in _NORMS:
            return _NORMS[func](*args, **given)
        return func(*args, **given)


#: Functions that are bounded on positive numbers.
_PASSING = frozenset(
    {
        F.relu6,
        F.hardtanh,
        F.hardtanh_,
        F.tanh,
        torch.tanh,
        torch.tanh_,
        Tensor.tanh,
        Tensor.tanh_,
        torch.clamp,
        torch.clamp_,
        Tensor.clamp,
        Tensor.clamp_,
        F.local_response_norm,
    }
)


def _trailing(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Return ``input`` scaled and shifted along its last dimensions."""
    return _affine(input, weight, bias)


def _grouped(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``input`` scaled and shifted along its channels."""
    shape = (-1, *[1] * (input.ndim - 2))
    scale, shift = (None if v is None else v.reshape(shape) for v in (weight, bias))
    return _affine(input, scale, shift)


def _instance(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Tensor:
    """Return ``input`` scaled and shifted along its channels."""
    return _grouped(input, 1, weight, bias)


def _affine(values: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    values = values if scale is None else values * scale
    return values if shift is None else values + shift


#: Normalisations by numbers of the input, without the division.
_NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _trailing,
    F.rms_norm: _trailing,
    F.group_norm: _grouped,
    F.instance_norm: _instance,
}
