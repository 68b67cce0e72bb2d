"""Labels of a tensor into a part of which something was written."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.network.labels import Planes, collapse_all, varying

#: Start and length of the part along a dimension, and the dimension of the view that it is.
_Extent = tuple[int, int, int | None]


def after_write(base: Tensor, before: Planes, view: Tensor, planes: Planes) -> Planes | None:
    """Return the planes of ``base`` after ``planes`` were written into a view of it.

    Args:
        base: The whole tensor.
        before: Its planes until then.
        view: The part, made by slicing and selecting.
        planes: Planes of what was written.

    Returns:
        The planes, ``None`` where they cannot be worked out.
    """
    region = _region(base, view)
    if region is None or len(before) > 1 or len(planes) != 1:
        return None
    sizes = [1 if dim is None else planes[0].shape[dim] for _, _, dim in region]
    part = planes[0].reshape(sizes)
    old = before[0] if before else torch.zeros([1] * base.ndim, dtype=torch.int64)
    partial = {dim for dim, (_, length, _) in enumerate(region) if length < base.shape[dim]}
    dims = partial | set(varying(part)) | set(varying(old))
    whole = old.expand([n if dim in dims else 1 for dim, n in enumerate(base.shape)]).clone()
    place = whole
    for dim in dims:
        start, length, _ = region[dim]
        place = place.narrow(dim, start, length)
    place.copy_(part.expand(place.shape))
    return collapse_all([whole])


def _region(base: Tensor, view: Tensor) -> list[_Extent] | None:
    """Return which part of each dimension of ``base`` a view is, ``None`` if it is no such part."""
    if not (base.is_contiguous() and base.numel()):
        return None
    offset = int(view.storage_offset()) - int(base.storage_offset())
    region: list[_Extent] = []
    taken = 0
    for size, stride in zip(base.shape, base.stride(), strict=True):
        start, offset = divmod(offset, stride)
        own = taken < view.ndim and view.stride(taken) == stride
        length = view.shape[taken] if own else 1
        if start + length > size:
            return None
        region.append((start, length, taken if own else None))
        taken += own
    return region if taken == view.ndim else None
