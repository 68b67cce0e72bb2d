r"""Closed-form merging: what remains of a group takes over the part of what goes.

A reader with inputs of covariance G that keeps the units S and loses R gets the columns

.. math:: W'_S = W_S + W_R A^T, \quad A = (G_{SS} + \lambda \bar g I)^{-1} G_{SR}

the least-squares optimum among linear maps that all kernel taps share, and the bias takes over the
means. Readers are independent of each other, because only readers change; producers lose rows.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from autoprune.network.groups import ChannelGroup
from autoprune.network.inputs import call_model, evaluating
from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters
from autoprune.pruning.criterion import Batches
from autoprune.pruning.elimination import RIDGE, Elimination, Problem, eliminate, regularised
from autoprune.pruning.gram import InputMoments, Measured, measure
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.reads import Reader
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.trails import Ending, EndingsOf

#: Positions per channel below which moments are too rough to merge by.
FEWEST_ROWS_PER_CHANNEL = 10

#: Largest share that a kept unit may take over of one that goes [Kwon2022mask].
LARGEST_SHARE = 10.0

#: Bytes of merged weights that are kept for the next candidate.
CACHE_BYTES = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A reader with all that its least-squares problem needs.

    Attributes:
        reader: Where the units are.
        parameter: Its weight.
        moments: Of its inputs.
        centred: Whether the means of its outputs are absorbed, by a bias or by a BatchNorm.
        biased: Whether it has a bias that can take over means.
    """

    reader: Reader
    parameter: Float[Tensor, "..."]
    moments: InputMoments
    centred: bool
    biased: bool

    @property
    def weight(self) -> Float[Tensor, "conv_groups rows channels"]:
        """The weight in double precision, one row per output and kernel tap, inputs last."""
        reader, weight = self.reader, self.parameter.detach().double()
        groups = 1 if reader.transposed else reader.conv_groups
        flat = weight.movedim(reader.dim, -1)
        return flat.reshape(groups, -1, weight.shape[reader.dim])

    @property
    def gram(self) -> Float[Tensor, "conv_groups channels channels"] | None:
        """Covariance of the inputs, or their second moments where nothing absorbs a mean."""
        return None if self.moments.second is None else self.moments.gram(centred=self.centred)

    @property
    def channels(self) -> Int[Tensor, " positions"]:
        """The inputs that the units occupy, unit by unit."""
        return torch.from_numpy(self.reader.indices.ravel()).to(self.parameter.device)

    def problems(self) -> list[Problem]:
        """Return the quadratic in the units, one per group of the convolution."""
        gram, weight, at = self.gram, self.weight, self.channels
        if gram is None:
            return []
        energy = float(((weight @ gram) * weight).sum())
        return [
            Problem(moments[at[:, None], at], matrix[:, at].T @ matrix[:, at], energy)
            for moments, matrix in zip(gram, weight, strict=True)
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """A network with what calibration images told about the readers of its groups.

    Attributes:
        network: The network.
        measured: Moments of all readers.
        endings: What follows each reader, by parameter name.
    """

    network: Network
    measured: Measured
    endings: Mapping[str, Ending]

    @classmethod
    def of(cls, network: Network, batches: Batches, *, means_only: bool = False) -> Calibrated:
        """Return what one pass over ``batches`` tells; targets are not read.

        With means only, merging moves nothing but the means into the biases.
        """
        measured = measure(network, batches, means_only=means_only)
        return cls(network, measured, endings(network, sorted(measured.moments)))

    def readings(self, group: ChannelGroup) -> list[Reading]:
        """Return the readers of a group that ran, with their problems.

        A transposed convolution in groups has its inputs mixed with its groups and is left out.
        """
        named = named_parameters(self.network.model)
        return [
            self._reading(reader, named)
            for reader in self.measured.readers[group.name]
            if reader.path in self.measured.moments
            and not (reader.transposed and reader.conv_groups > 1)
        ]

    def _reading(self, reader: Reader, named: Mapping[str, Tensor]) -> Reading:
        # Outputs of a transposed convolution see different taps, so no bias equals a mean.
        biased = not reader.transposed and bias_of(reader, named) is not None
        ending = self.endings.get(reader.path)
        return Reading(
            reader=reader,
            parameter=named[reader.path],
            moments=self.measured.moments[reader.path],
            centred=biased or (ending is not None and ending.norm is not None),
            biased=biased,
        )

    def elimination(self, group: ChannelGroup) -> Elimination | None:
        """Return the order in which units go and the damage curve; ``None`` without known readers.

        Args:
            group: A group of the network.
        """
        problems = [problem for reading in self.readings(group) for problem in reading.problems()]
        return eliminate(problems, group.size) if problems else None


def endings(network: Network, paths: Sequence[str]) -> dict[str, Ending]:
    """Return what follows the weights that run once, from a pass over the example inputs."""
    follower = EndingsOf(network.model, paths)
    with evaluating(network.model), torch.no_grad(), follower:
        call_model(network.model, network.inputs)
    return follower.endings


def bias_of(reader: Reader, named: Mapping[str, Tensor]) -> Tensor | None:
    """Return the bias of a reader's layer."""
    place, _, name = reader.path.rpartition(".")
    prefix = f"{place}." if place else ""
    return named.get(f"{prefix}{name.removesuffix('weight')}bias")


@dataclasses.dataclass(frozen=True, eq=False)
class _Merged:
    """What a reader's kept columns and its bias gain.

    Attributes:
        columns: Input channels that stay.
        weight: What their columns gain.
        bias: What the bias gains, one number per row of ``weight``.
    """

    columns: Int[Tensor, " kept"]
    weight: Float[Tensor, "conv_groups rows kept"]
    bias: Float[Tensor, "conv_groups rows"]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.bias.nbytes + self.columns.nbytes


class Merger:
    """Gives the merged weights of candidates; what two of them share is computed once.

    References:
        [Kwon2022mask] W. Kwon et al. A Fast Post-Training Pruning Framework for Transformers.
        NeurIPS 2022.
    """

    def __init__(
        self, calibrated: Calibrated, *, ridge: float = RIDGE, cache_bytes: int = CACHE_BYTES
    ) -> None:
        r"""Prepare the problems of all readers.

        Args:
            calibrated: The network, measured.
            ridge: The :math:`\lambda`, a share of the mean diagonal of G.
            cache_bytes: Bound on the merged weights that are kept; the least recently used go.
        """
        self.network = calibrated.network
        self.surgeon = Surgeon(calibrated.network)
        self.ridge, self.cache_bytes = ridge, cache_bytes
        # Without second moments and without a bias there is nothing that could change.
        self._readings = {
            group.name: [
                reading
                for reading in calibrated.readings(group)
                if reading.biased or reading.moments.second is not None
            ]
            for group in calibrated.network.groups
        }
        self._cache: OrderedDict[tuple[str, int, tuple[int, ...]], _Merged] = OrderedDict()
        self._cached = 0

    def cut(self, plan: PruningPlan) -> nn.Module:
        """Return the pruned network with merged weights; running statistics are those of before.

        Raises:
            PruningError: The plan does not fit the network.
        """
        return self.surgeon.cut(plan, replaced=self.replaced(plan))

    def replaced(self, plan: PruningPlan) -> dict[str, Tensor]:
        """Return the parameters that merging changes, at full size, by name."""
        plan.check(self.network)
        named = named_parameters(self.network.model)
        changed: dict[str, Tensor] = {}
        for group in self.network.groups:
            kept = plan.kept.get(group.name)
            if kept is None or len(kept) == group.size:
                continue
            for number, reading in enumerate(self._readings[group.name]):
                merged = self._looked_up(group, number, kept)
                _apply(reading, merged, named, changed)
        return changed

    def _looked_up(self, group: ChannelGroup, number: int, kept: tuple[int, ...]) -> _Merged:
        key = (group.name, number, kept)
        merged = self._cache.pop(key, None)
        if merged is None:
            merged = merge(self._readings[group.name][number], kept, ridge=self.ridge)
            self._cached += merged.nbytes
            while self._cache and self._cached > self.cache_bytes:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        self._cache[key] = merged
        return merged


def merge(reading: Reading, kept: tuple[int, ...], *, ridge: float = RIDGE) -> _Merged:
    """Return what a reader's weight and bias gain when only ``kept`` units stay.

    Too few positions, or a unit that would take over more than :data:`LARGEST_SHARE` of another,
    and only the bias takes over the means.
    """
    units, weight, mean = reading.reader.indices, reading.weight, reading.moments.mean
    stay = torch.from_numpy(units[np.array(kept)].ravel()).to(weight.device)
    gone = torch.from_numpy(np.delete(units, kept, axis=0).ravel()).to(weight.device)
    share = _shares(reading, stay, gone, ridge)
    lost = weight[:, :, gone]
    moved = mean[:, gone] - (share.mT @ mean[:, stay, None])[..., 0]
    if not reading.biased:
        moved = torch.zeros_like(moved)
    gain, shift = lost @ share.mT, (lost @ moved[..., None])[..., 0]
    dtype = reading.parameter.dtype
    return _Merged(stay, gain.to(dtype), shift.to(dtype))


def _shares(
    reading: Reading, stay: Tensor, gone: Tensor, ridge: float
) -> Float[Tensor, "conv_groups kept removed"]:
    """Return how much each kept input takes over of each removed one; zeros where it must not."""
    gram = reading.gram
    nothing = reading.moments.mean.new_zeros(len(reading.moments.mean), len(stay), len(gone))
    channels = len(stay) + len(gone)
    if gram is None or reading.moments.count < FEWEST_ROWS_PER_CHANNEL * channels:
        return nothing
    at = reading.channels
    within = regularised(gram[:, at[:, None], at], ridge)
    place = torch.empty(gram.shape[1], dtype=torch.long, device=gram.device)
    place[at] = torch.arange(len(at), device=gram.device)
    inner, outer = place[stay], place[gone]
    share: Tensor = torch.linalg.solve(
        within[:, inner[:, None], inner], within[:, inner[:, None], outer]
    )
    wild = share.abs().amax((1, 2)) > LARGEST_SHARE
    return torch.where(wild[:, None, None], nothing, share)


def _apply(
    reading: Reading, merged: _Merged, named: Mapping[str, Tensor], changed: dict[str, Tensor]
) -> None:
    """Add a merge to the changed parameters."""
    reader = reading.reader
    weight = changed.setdefault(reader.path, named[reader.path].detach().clone())
    turned = weight.movedim(reader.dim, -1)
    turned[..., merged.columns] += merged.weight.reshape(*turned.shape[:-1], -1)
    bias = bias_of(reader, named) if reading.biased else None
    if bias is not None:
        # By its first name, which surgery knows it by. Rows are outputs times kernel taps.
        path = next(name for name, tensor in named.items() if tensor is bias)
        into = changed.setdefault(path, bias.detach().clone())
        into += merged.bias.reshape(len(into), -1).sum(1)
