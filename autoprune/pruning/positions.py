"""Sampled positions of a weight's output, and what the weight reads there."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from autoprune.pruning.reads import Convolution, Product, Read


def layout_of(output: Tensor) -> tuple[int, ...]:
    """Return all extents but that of the channels."""
    return (output.shape[0], *output.shape[2:])


def drawn(
    output: Tensor, how: Product | Convolution, rows: int, generator: torch.Generator
) -> Int[Tensor, "..."]:
    """Return random positions of an output, about ``rows``, or all where there are not more."""
    if isinstance(how, Product):
        count = len(output)
        places = torch.randperm(count, generator=generator)[:rows]
        return places.sort().values.to(output.device)
    area = output[0, 0].numel()
    each = -(-rows // len(output))
    if each >= area:
        return torch.arange(area, device=output.device).repeat(len(output), 1)
    # With replacement: a permutation for each image would take longer than the solution.
    places = torch.randint(area, (len(output), each), generator=generator)
    return places.sort(1).values.to(output.device)


def at(
    tensor: Float[Tensor, "..."], positions: Int[Tensor, "..."]
) -> Float[Tensor, "rows channels"]:
    """Return what a tensor of an output's layout has at positions, in at least single precision."""
    if positions.ndim == 1:
        rows = tensor[positions]
    else:
        image = torch.arange(len(positions), device=positions.device)[:, None]
        rows = tensor.flatten(2)[image, :, positions].flatten(0, 1)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def inputs_at(
    read: Read, kernel: tuple[int, ...], positions: Int[Tensor, "..."]
) -> Float[Tensor, "problems rows unknowns"]:
    """Return the inputs behind sampled outputs, a row for each, by group of a convolution.

    Args:
        read: What is read, and how.
        kernel: Extents of the kernel.
        positions: Where the output was sampled.
    """
    if isinstance(read.how, Product):
        return at(read.input, positions)[None]
    how = read.how
    padded = F.pad(read.input, [pad for pad in reversed(how.padding) for _ in range(2)])
    extents = [
        (size - step * (taps - 1) - 1) // stride + 1
        for size, step, taps, stride in zip(
            padded.shape[2:], how.dilation, kernel, how.stride, strict=True
        )
    ]
    places = torch.unravel_index(positions, extents)
    taps = torch.unravel_index(torch.arange(int(np.prod(kernel)), device=positions.device), kernel)
    flat = torch.zeros((), dtype=torch.long, device=positions.device)
    for dim, (place, tap) in enumerate(zip(places, taps, strict=True)):
        along = place[..., None] * how.stride[dim] + tap * how.dilation[dim]
        flat = flat * padded.shape[2 + dim] + along
    image = torch.arange(len(positions), device=positions.device)[:, None, None]
    rows = padded.movedim(1, -1).flatten(1, -2)[image, flat]
    groups, width = how.groups, rows.shape[-1] // how.groups
    by_group = rows.reshape(-1, rows.shape[-2], groups, width).movedim(2, 0)
    by_group = by_group.flatten(2)
    return by_group.to(torch.promote_types(by_group.dtype, torch.float32))
