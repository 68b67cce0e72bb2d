"""Reductions and softmax: labels of the dimensions that remain pass through."""

from __future__ import annotations

from torch import Tensor

from autoprune.network.call import Call, normal_dim, rule
from autoprune.network.labels import Planes, collapse_all, varying

#: Reductions whose value over a cut dimension equals that over the zeroed one.
_ADDITIVE = frozenset({"sum", "linalg_vector_norm"})


@rule(
    *("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm"),
    *("prod", "logsumexp", "all", "any", "max", "min", "aminmax"),
)
def reduction(call: Call) -> Planes | list[Planes]:
    """Drop the reduced dimensions; what reads the numbers of a largest position freezes them."""
    tensor = call.args[0]
    named = call.arg(2, "dim") if call.name == "linalg_vector_norm" else call.arg(1, "dim")
    dims = _reduced(tensor, named)
    keepdim = call.outputs[0].ndim == tensor.ndim
    planes = []
    for plane in call.planes_of(tensor):
        inside = [dim for dim in varying(plane) if dim in dims]
        if inside and call.name not in _ADDITIVE:
            call.coupling.mix(plane)
        for dim in inside:
            if len(inside) < len(varying(plane)):
                call.coupling.tie_along(plane, dim, "reduced over")
            plane = plane.narrow(dim, 0, 1)
        planes.append(plane if keepdim else _squeeze(plane, dims))
    kept = collapse_all(planes)
    return [kept] * len(call.outputs)


@rule("_softmax", "_safe_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod")
def along(call: Call) -> Planes:
    """Operators along one dimension that keep the shape; they mix it."""
    tensor = call.args[0]
    dim = normal_dim(call.arg(1, "dim"), tensor.ndim)
    planes = call.planes_of(tensor)
    for plane in planes:
        if plane.shape[dim] > 1:
            call.coupling.mix(plane)
    return planes


def _reduced(tensor: Tensor, dim: int | list[int] | None) -> set[int]:
    if dim is None or dim == []:
        return set(range(tensor.ndim))
    dims = [dim] if isinstance(dim, int) else dim
    return {normal_dim(d, tensor.ndim) for d in dims}


def _squeeze(plane: Tensor, dims: set[int]) -> Tensor:
    return plane.reshape([size for dim, size in enumerate(plane.shape) if dim not in dims])
