"""Fourier transforms: they mix the positions of the dimensions that they transform."""

from __future__ import annotations

from autoprune.network.call import Call, normal_dim, rule
from autoprune.network.labels import Planes, varying


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def transform(call: Call) -> Planes:
    """The labels of dimensions that are not transformed pass."""
    tensor = call.args[0]
    dims = {normal_dim(dim, tensor.ndim) for dim in call.args[1]}
    kept = []
    for plane in call.planes_of(tensor):
        if dims & set(varying(plane)):
            call.coupling.freeze(plane, "transformed to frequencies")
        else:
            kept.append(plane)
    return tuple(kept)
