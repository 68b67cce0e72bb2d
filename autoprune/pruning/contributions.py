r"""What every unit contributes to the outputs of the weights that read it, at random places.

An output entry of a reader is a sum over units, :math:`y = \sum_c x_c W_c`, kernel taps within.
:math:`E[z z^T]` of the vector z of its terms says what removing any set of units costs there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from autoprune.network.network import Network
from autoprune.pruning.activations import Gatherer, by_path, gather, known_readers
from autoprune.pruning.aggregate import named_parameters, widened
from autoprune.pruning.criterion import Batches
from autoprune.pruning.reads import Convolution, Product, Reader

#: Entries whose terms are in memory at once.
_CHUNK = 512


def contribution_moments(
    network: Network, batches: Batches, *, samples: int, seed: int
) -> dict[str, Float[np.ndarray, "units units"] | str]:
    r"""Return :math:`E[z z^T]` of every group, or why there is none.

    The expectation is over random output entries: image, position and output channel. Several
    readers count alike: each is divided by its mean diagonal, then they are averaged.

    Args:
        network: A traced network; its model stays as it is.
        batches: Calibration data; targets are not read.
        samples: Entries per image and reader.
        seed: Determines the entries.
    """
    known = known_readers(network)
    paths = by_path(known)
    weights = named_parameters(network.model)
    gathered = gather(
        network,
        batches,
        known,
        lambda path: _Terms(weights[path].detach(), paths[path], samples, seed),
    )
    found: dict[str, Float[np.ndarray, "units units"] | str] = {}
    for name, everyone in known.items():
        ran = [reader for reader in everyone if reader.path in gathered]
        if ran:
            found[name] = _mean([gathered[reader.path].sums[name] for reader in ran])
        else:
            found[name] = "its readers never ran" if everyone else "not all readers are known"
    return found


def _mean(
    moments: Sequence[Float[np.ndarray, "units units"]],
) -> Float[np.ndarray, "units units"]:
    """Return the mean of matrices, each over the mean of its diagonal."""
    scaled = [moment / (float(np.diagonal(moment).mean()) or 1.0) for moment in moments]
    mean: Float[np.ndarray, "units units"] = np.mean(scaled, axis=0)
    return mean


class _Terms(Gatherer):
    """Adds up the products of the terms of random output entries of one weight."""

    def __init__(
        self,
        weight: Float[Tensor, "..."],
        groups: Sequence[tuple[str, Reader]],
        samples: int,
        seed: int,
    ) -> None:
        self.weight = widened(weight)
        self.groups = groups
        self.samples = samples
        self.generator = torch.Generator().manual_seed(seed)
        self.sums = {
            name: np.zeros((len(reader.indices), len(reader.indices))) for name, reader in groups
        }

    def add(self, inputs: Tensor, how: Product | Convolution, images: int) -> None:
        """Take in one input."""
        entries = self.samples * images
        for start in range(0, entries, _CHUNK):
            count = min(_CHUNK, entries - start)
            terms = _terms(widened(inputs), self.weight, how, count, self.generator)
            for name, reader in self.groups:
                units = terms[:, torch.from_numpy(reader.indices).to(terms.device)].sum(2)
                self.sums[name] += (units.T.double() @ units.double()).cpu().numpy()


def _terms(
    inputs: Float[Tensor, "..."],
    weight: Float[Tensor, "..."],
    how: Product | Convolution,
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "entries channels"]:
    """Return the terms of random output entries, one per position in the weight's input dimension.

    A transposed convolution spreads every input position over several outputs; an entry then is
    what one input position gives to one output channel at one tap.
    """

    def draw(extent: int) -> Int[Tensor, " entries"]:
        return torch.randint(extent, (count,), generator=generator).to(inputs.device)

    if isinstance(how, Product) or how.transposed:
        rows = inputs if isinstance(how, Product) else inputs.movedim(1, -1).flatten(0, -2)
        matrix = weight.movedim(how.dim, 0).flatten(1)
        return rows[draw(len(rows))] * matrix[:, draw(matrix.shape[1])].T
    outputs = draw(len(weight))
    patches = _patches(inputs, weight.shape[2:], how, draw)
    by_group = patches.unflatten(1, (how.groups, -1))
    chosen = by_group[
        torch.arange(count, device=inputs.device), outputs // (len(weight) // how.groups)
    ]
    terms: Tensor = (chosen * weight[outputs].flatten(2)).sum(2)
    return terms


def _patches(
    inputs: Float[Tensor, "n channels *spatial"],
    kernel: Sequence[int],
    how: Convolution,
    draw: Callable[[int], Tensor],
) -> Float[Tensor, "entries channels taps"]:
    """Return what a convolution reads for random output positions of random images."""
    both_ends = [amount for pad in reversed(how.padding) for amount in (pad, pad)]
    padded = F.pad(inputs, both_ends)
    images = draw(len(inputs))
    index: list[Tensor | slice] = [images.reshape(-1, *[1] * len(kernel)), slice(None)]
    for axis, taps in enumerate(kernel):
        reach = how.dilation[axis] * (taps - 1) + 1
        starts = draw((padded.shape[2 + axis] - reach) // how.stride[axis] + 1) * how.stride[axis]
        steps = how.dilation[axis] * torch.arange(taps, device=inputs.device)
        shape = [len(images), *(taps if i == axis else 1 for i in range(len(kernel)))]
        index.append((starts[:, None] + steps).reshape(shape))
    return padded[tuple(index)].movedim(-1, 1).flatten(2)
