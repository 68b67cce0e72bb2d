"""What the criteria that look at activations have in common: they listen to a group's readers.

A unit's activation is what a weight reads of it: behind normalisation, nonlinearity and pooling,
and, on a residual path, once at every layer that reads the stream.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from autoprune.network.network import Network
from autoprune.pruning.aggregate import (
    checked_normaliser,
    checked_reducer,
    combine,
    named_parameters,
    widened,
)
from autoprune.pruning.criterion import Batches, Criterion, Family, Needs
from autoprune.pruning.gram import pieces
from autoprune.pruning.magnitude import or_magnitude
from autoprune.pruning.reads import Convolution, Product, Reader, listening, readers


class Gatherer(ABC):
    """Takes in what one weight reads."""

    @abstractmethod
    def add(self, inputs: Tensor, how: Product | Convolution, images: int) -> None:
        """Take in one input, which comes from so many images."""


G = TypeVar("G", bound=Gatherer)

#: One number per unit.
Scores = Float[np.ndarray, " units"]

#: The readers of every group by its name; none where not all of them are known.
Readers = Mapping[str, tuple[Reader, ...]]


def known_readers(network: Network) -> dict[str, tuple[Reader, ...]]:
    """Return the readers of every group by its name; none where not all of them are known."""
    return {group.name: readers(network, group) for group in network.groups}


def by_path(known: Readers) -> dict[str, list[tuple[str, Reader]]]:
    """Return for every weight that reads which groups it reads, by name, and where."""
    paths: dict[str, list[tuple[str, Reader]]] = {}
    for name, found in known.items():
        for reader in found:
            paths.setdefault(reader.path, []).append((name, reader))
    return paths


def gather(
    network: Network, batches: Batches, known: Readers, make: Callable[[str], G]
) -> dict[str, G]:
    """Return what was gathered for every reader that ran, by parameter name.

    Takes one forward pass over the data; targets are not read.

    Args:
        network: A traced network; its model stays as it is.
        batches: Calibration data.
        known: The readers, from :func:`known_readers`.
        make: Returns an empty gatherer for a parameter name.
    """
    gathered: dict[str, G] = {}
    paths = by_path(known)
    for part in pieces(network.model, batches):
        images = len(part)

        def listen(
            path: str, inputs: Tensor, how: Product | Convolution, images: int = images
        ) -> None:
            if path not in gathered:
                gathered[path] = make(path)
            gathered[path].add(inputs, how, images)

        with listening(network.model, paths, listen):
            network.model(part)
    return gathered


def columns(
    reader: Reader, weight: Float[Tensor, "..."]
) -> tuple[Int[np.ndarray, "units per_unit"], Float[Tensor, "columns entries"]]:
    """Return which input channels of a layer each unit is, and the weights of every input channel.

    A grouped convolution has the units in each of its groups.

    Args:
        reader: Where a weight reads the units.
        weight: That weight.
    """
    if reader.transposed or reader.conv_groups == 1:
        return reader.indices, weight.movedim(reader.dim, 0).flatten(1)
    groups, inputs = reader.conv_groups, weight.shape[1]
    starts = inputs * np.arange(groups)
    places = (reader.indices[:, None, :] + starts[:, None]).reshape(len(reader.indices), -1)
    by_group = weight.reshape(groups, -1, inputs, weight[0, 0].numel())
    return places, by_group.transpose(1, 2).reshape(groups * inputs, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class ColumnMoments:
    """Means of what a weight reads over images and positions, for each input channel.

    Attributes:
        mean: Of the values.
        variance: Of the values, without Bessel's correction.
        absolute: Mean of absolute values.
        square: Mean of squares.
        zeros: Fraction that is exactly zero.
    """

    mean: Float[Tensor, " columns"]
    variance: Float[Tensor, " columns"]
    absolute: Float[Tensor, " columns"]
    square: Float[Tensor, " columns"]
    zeros: Float[Tensor, " columns"]


class _Moments(Gatherer):
    """Gathers :class:`ColumnMoments`, in double precision from one input to the next."""

    def __init__(self) -> None:
        self.count = 0
        self.found: ColumnMoments | None = None

    def add(self, inputs: Tensor, how: Product | Convolution, images: int) -> None:
        """Take in one input."""
        values = widened(inputs)
        over = [dim for dim in range(values.ndim) if dim != 1]
        variance, mean = torch.var_mean(values, over, correction=0)
        new = ColumnMoments(
            mean=mean.double(),
            variance=variance.double(),
            absolute=values.abs().mean(over).double(),
            square=values.square().mean(over).double(),
            zeros=(values == 0).double().mean(over),
        )
        count = values.numel() // values.shape[1]
        self.found = new if self.found is None else _joined(self.found, self.count, new, count)
        self.count += count


def _joined(old: ColumnMoments, before: int, new: ColumnMoments, count: int) -> ColumnMoments:
    """Return the moments of ``before`` values and ``count`` others together."""
    share = count / (before + count)
    step = new.mean - old.mean

    def mean(one: Tensor, other: Tensor) -> Tensor:
        return one + share * (other - one)

    between = share * (1 - share) * step.square()
    return ColumnMoments(
        mean=mean(old.mean, new.mean),
        variance=mean(old.variance, new.variance) + between,
        absolute=mean(old.absolute, new.absolute),
        square=mean(old.square, new.square),
        zeros=mean(old.zeros, new.zeros),
    )


class ColumnCriterion(Criterion):
    """Scores every input channel of every reader by itself.

    A unit of several channels (a head, a flattened map) gets their mean. The scores of each reader
    are normalised, then reduced over readers. **Groups whose readers are not all known, or never
    ran, are scored by the L2 magnitude of their weights** and listed in :attr:`notes`.
    """

    needs: ClassVar[Needs] = "inputs"
    family: ClassVar[Family] = "activation-based"

    def __init__(self, *, normaliser: str = "mean", reduce: str = "mean") -> None:
        """Store parameters.

        Args:
            normaliser: How the scores of each reader are scaled, in ``aggregate.NORMALISERS``.
            reduce: How readers become one, a name in ``aggregate.REDUCERS``.
        """
        self.normaliser = checked_normaliser(normaliser)
        self.reduce = checked_reducer(reduce)

    def _score(self, network: Network, batches: Batches) -> dict[str, Float[np.ndarray, " units"]]:
        known = known_readers(network)
        gathered = gather(network, batches, known, lambda path: _Moments())
        weights = named_parameters(network.model)

        def site(reader: Reader) -> Float[np.ndarray, " units"]:
            places, rows = columns(reader, weights[reader.path].detach())
            moments = gathered[reader.path].found
            assert moments is not None  # a gatherer is made for an input
            scores = self.score_columns(moments, rows.double()).cpu().numpy()
            means: Float[np.ndarray, " units"] = scores[places].mean(1)
            return means

        found = site_scores(known, gathered, site, self.group_score)
        scores, self.notes = or_magnitude(network, found)
        return scores

    @abstractmethod
    def score_columns(
        self, moments: ColumnMoments, weights: Float[Tensor, "columns entries"]
    ) -> Float[Tensor, " columns"]:
        """Return the score of every input channel.

        Args:
            moments: Of what the channels carry.
            weights: All weights that read each channel.
        """

    def group_score(
        self, sites: Sequence[Float[np.ndarray, " units"]]
    ) -> Float[np.ndarray, " units"] | str:
        """Return a group's scores from those of each reader, or why the formula says nothing."""
        return combine(sites, normaliser=self.normaliser, reduce=self.reduce)


def site_scores(
    known: Readers,
    gathered: Mapping[str, object],
    site: Callable[[Reader], Scores],
    group_score: Callable[[Sequence[Scores]], Scores | str],
) -> dict[str, Scores | str]:
    """Return for every group its scores from those of its readers, or why there are none.

    Args:
        known: The readers of every group.
        gathered: What was gathered, by parameter name; readers that never ran are left out.
        site: Returns the scores by one reader that ran.
        group_score: Returns the scores of a group from those of its readers, or a reason.
    """
    found: dict[str, Scores | str] = {}
    for name, everyone in known.items():
        ran = [reader for reader in everyone if reader.path in gathered]
        if ran:
            found[name] = group_score([site(reader) for reader in ran])
        else:
            found[name] = "its readers never ran" if everyone else "not all readers are known"
    return found
