"""Mean and second moments of what every reader reads, from one dense pass without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoprune.errors import PruningError
from autoprune.network.network import Network
from autoprune.pruning.criterion import Batches
from autoprune.pruning.reads import Convolution, Product, Reader, listening, readers, rows_of

#: Positions that moments are taken over: at least so many, and so many per channel.
ROWS, ROWS_PER_CHANNEL = 16_384, 16

#: Images of one forward pass.
PASS_IMAGES = 64

#: Inputs wider than this keep only their mean: a matrix of their moments would not fit.
WIDEST = 8192

#: Rows that one product in single precision adds up before the sum goes on in double.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class InputMoments:
    """Moments of the inputs of one weight over images and positions, in double precision.

    Attributes:
        count: Positions they were taken over.
        mean: Mean of each channel, by group of the convolution.
        second: Uncentred second moments; ``None`` where there are too many channels, or where
            nobody asked.
    """

    count: int
    mean: Float[Tensor, "conv_groups channels"]
    second: Float[Tensor, "conv_groups channels channels"] | None

    def gram(self, *, centred: bool) -> Float[Tensor, "conv_groups channels channels"]:
        """Return the covariance, or the second moments where nothing absorbs a mean.

        Raises:
            PruningError: There are only means.
        """
        if self.second is None:
            raise PruningError(
                f"inputs of {self.mean.shape[1]} channels have no second moments; expected at "
                f"most {WIDEST}"
            )
        if not centred:
            return self.second
        return self.second - self.mean[:, :, None] * self.mean[:, None, :]


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What one pass of calibration images through the dense network tells.

    Attributes:
        readers: The known readers of each group, by its name.
        moments: By parameter name of the reader; a reader that never ran is left out.
    """

    readers: Mapping[str, tuple[Reader, ...]]
    moments: Mapping[str, InputMoments]


def measure(network: Network, batches: Batches, *, means_only: bool = False) -> Measured:
    """Return the input moments of all readers of all groups.

    Takes one forward pass. Where a reader sees more positions than its moments need, a random
    sample of them counts, the same at every call.

    Args:
        network: A traced network; its model is not changed.
        batches: Calibration data; targets are not read.
        means_only: Leave out second moments.
    """
    known = {group.name: readers(network, group) for group in network.groups}
    groups = {reader.path: reader.conv_groups for found in known.values() for reader in found}
    transposed = {r.path for found in known.values() for r in found if r.transposed}
    images = sum(len(inputs) for inputs, _ in batches)
    sums = {
        path: _Sums(1 if path in transposed else number, images, widest=0 if means_only else WIDEST)
        for path, number in groups.items()
    }
    for part in pieces(network.model, batches):
        share = len(part)

        def listen(
            path: str, inputs: Tensor, how: Product | Convolution, share: int = share
        ) -> None:
            sums[path].add(inputs, how, share)

        with listening(network.model, groups, listen):
            network.model(part)
    return Measured(
        readers=known,
        moments={path: total.moments() for path, total in sums.items() if total.count},
    )


def pieces(model: nn.Module, batches: Batches) -> Iterator[Tensor]:
    """Yield the inputs in pieces of at most :data:`PASS_IMAGES`, on the device of ``model``."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for inputs, _ in batches:
        for part in inputs.split(PASS_IMAGES):
            yield part.to(device)


class _Sums:
    """Adds up moments of one weight's inputs."""

    def __init__(self, conv_groups: int, images: int, *, widest: int) -> None:
        """Store how the channels are grouped and of how many images positions come.

        Of more than ``widest`` channels there is only the mean.
        """
        self.conv_groups, self.images, self.widest = conv_groups, images, widest
        self.count = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.generator = torch.Generator().manual_seed(0)

    def add(self, inputs: Tensor, how: Product | Convolution, images: int) -> None:
        """Add a sample of the positions of ``inputs``, which come from so many images."""
        channels = inputs.shape[1]
        width = channels // self.conv_groups
        wanted = -(-max(ROWS, ROWS_PER_CHANNEL * width) * images // self.images)
        for rows in sampled_rows(inputs, how, wanted, self.generator).split(_BLOCK):
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            by_group = rows.reshape(len(rows), self.conv_groups, width).transpose(0, 1)
            self.count += len(rows)
            self.first = self.first + by_group.sum(1, dtype=torch.float64)
            if width <= self.widest:
                self.second = self.second + (by_group.mT @ by_group).double()

    def moments(self) -> InputMoments:
        """Return the moments of everything added."""
        first, second = torch.as_tensor(self.first), self.second
        return InputMoments(
            self.count,
            first / self.count,
            second / self.count if isinstance(second, Tensor) else None,
        )


def sampled_rows(
    inputs: Float[Tensor, "..."],
    how: Product | Convolution,
    wanted: int,
    generator: torch.Generator,
) -> Float[Tensor, "positions channels"]:
    """Return what was read at about ``wanted`` random positions, or at all where there are fewer.

    Args:
        inputs: ``[positions, channels]`` for a product, ``[n, channels, *spatial]`` otherwise.
        how: Which of the two.
        wanted: Positions; drawn with replacement.
        generator: Draws them.
    """
    positions = inputs.numel() // inputs.shape[1]
    if positions <= wanted:
        return rows_of(inputs, how)
    drawn = torch.randint(positions, (wanted,), generator=generator).to(inputs.device)
    if isinstance(how, Product):
        return inputs[drawn]
    area = positions // len(inputs)
    flat: Tensor = inputs.flatten(2)
    return flat[drawn // area, :, drawn % area]
