"""Operators that choose by value: what they choose from keeps its places."""

from __future__ import annotations

from autoprune.network.call import Call, normal_dim, rule
from autoprune.network.labels import Planes, collapse_all, varying


@rule("sort", "argsort", "argmin", "kthvalue", "median", "nanmedian", "mode", "cummax", "cummin")
def ordered(call: Call) -> list[Planes]:
    """Values and numbers along one dimension; the labels of the others pass."""
    tensor, out = call.args[0], call.outputs[0]
    named = call.arg(2 if call.name == "kthvalue" else 1, "dim", -1)
    dims = range(tensor.ndim) if named is None or out.ndim == 0 else [named]
    inside = {normal_dim(dim, tensor.ndim) for dim in dims}
    planes = []
    for plane in call.planes_of(tensor):
        met = inside & set(varying(plane))
        if met and len(varying(plane)) == len(met):
            call.coupling.freeze(plane, f"ordered by value in {call.name}")
            continue
        for dim in met:
            call.coupling.tie_along(plane, dim, f"ordered by value in {call.name}")
            plane = plane.narrow(dim, 0, 1)
        gone = inside if out.ndim < tensor.ndim else ()
        planes.append(plane.reshape([n for d, n in enumerate(plane.shape) if d not in gone]))
    return [collapse_all(planes)] * len(call.outputs)


@rule("nonzero", "masked_select", "unique", "_unique", "_unique2", "unique_dim", "nms")
def chosen(call: Call) -> Planes:
    """How much is left depends on the values: nothing that takes part can be cut."""
    call.freeze(call.tensors, f"chosen by value in {call.name}")
    return ()
