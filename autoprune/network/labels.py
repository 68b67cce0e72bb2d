"""Atoms, label tensors and the coupling between them.

Every index of every parameter dimension is an *atom*, a positive integer. A tensor of the forward
pass carries *planes*: integer tensors that broadcast to its shape and hold, for every position, the
atom that the position belongs to. A plane has size 1 along each dimension where the label does not
vary, so it costs next to nothing. Atom 0 marks a position that no parameter owns (padding): it can
never go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

Planes = tuple[Tensor, ...]


class AtomSpace:
    """Numbers the indices of every dimension of every floating-point parameter and buffer."""

    def __init__(self, model: nn.Module) -> None:
        """Number the atoms of ``model``; tied tensors share theirs under their first name."""
        self.ranges: list[tuple[str, int]] = []
        self.parameters: set[str] = set()
        self._planes: dict[int, Planes] = {}
        self._keep_alive: list[Tensor] = []
        starts = [1]
        named: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
        for name, tensor in named:
            if not tensor.is_floating_point() or id(tensor) in self._planes:
                continue
            planes = []
            for dim, size in enumerate(tensor.shape):
                shape = [1] * tensor.ndim
                shape[dim] = size
                ids = torch.arange(starts[-1], starts[-1] + size)
                planes.append(ids.reshape(shape))
                self.ranges.append((name, dim))
                starts.append(starts[-1] + size)
            self._planes[id(tensor)] = tuple(planes)
            self._keep_alive.append(tensor)
            if isinstance(tensor, nn.Parameter):
                self.parameters.add(name)
        self.starts: Int[np.ndarray, " ranges"] = np.array(starts[:-1], np.int64)
        self.size = starts[-1]

    def planes(self, tensor: Tensor) -> Planes | None:
        """Return the planes of a parameter or buffer, ``None`` for any other tensor."""
        return self._planes.get(id(tensor))

    def locate(
        self, atoms: Int[np.ndarray, " atoms"]
    ) -> tuple[Int[np.ndarray, " atoms"], Int[np.ndarray, " atoms"]]:
        """Return for each atom the index of its range and its position there."""
        index = np.searchsorted(self.starts, atoms, side="right") - 1
        return index, atoms - self.starts[index]


class Coupling:
    """Which atoms live and die together, and which can never go."""

    def __init__(self, size: int) -> None:
        """Start without any coupling.

        Args:
            size: One more than the largest atom.
        """
        self.size = size
        self.mixed: Bool[np.ndarray, " atoms"] = np.zeros(size, bool)
        self.batched: Bool[np.ndarray, " atoms"] = np.zeros(size, bool)
        self.picked: Int[np.ndarray, " atoms"] = np.zeros(size, np.int64)
        self.multiple: Int[np.ndarray, " atoms"] = np.ones(size, np.int64)
        self.idle = False
        self._followed: Bool[np.ndarray, " atoms"] = np.zeros(size, bool)
        self._edges: list[Int[np.ndarray, "2 edges"]] = []
        self._noted: set[bytes] = set()
        self._frozen: list[tuple[Int[np.ndarray, " atoms"], str]] = []
        self._claimed: Bool[np.ndarray, " atoms"] = np.zeros(size, bool)
        self._splits: list[Int[np.ndarray, "..."]] = []

    def couple(self, left: Tensor, right: Tensor, reason: str | None) -> None:
        """Tie the atoms of two planes position by position, with broadcasting.

        Args:
            left: A plane.
            right: A plane that broadcasts against it.
            reason: Why a position would be frozen whose partner belongs to no parameter; ``None``
                leaves it to the trial cut, since padding may follow the width at run time.
        """
        first, second = torch.broadcast_tensors(left, right)
        pairs = np.stack([first.reshape(-1).numpy(), second.reshape(-1).numpy()])
        real = (pairs > 0).all(axis=0)
        new = real & (pairs[0] != pairs[1])
        distinct = np.unique(pairs[0, new] * self.size + pairs[1, new])
        # A recurrence couples the same atoms at every step.
        digest = hashlib.blake2b(distinct.tobytes(), digest_size=16).digest()
        if distinct.size and digest not in self._noted:
            self._noted.add(digest)
            self._edges.append(np.stack(np.divmod(distinct, self.size)))
        self._claimed[pairs[:, real].ravel()] = True
        lonely = pairs[:, ~real].ravel()
        if reason is None:
            self._claimed[lonely] = True
        elif (lonely > 0).any():
            self.freeze(torch.from_numpy(lonely), reason)

    def tie_along(self, plane: Tensor, dim: int, reason: str) -> None:
        """Couple all positions of ``plane`` along ``dim`` with the first one."""
        if plane.shape[dim] > 1:
            self.couple(plane.narrow(dim, 0, 1), plane, reason)

    def freeze(self, plane: Tensor, reason: str) -> None:
        """Mark every atom of ``plane`` as one that can never go."""
        atoms = np.unique(plane.reshape(-1).numpy())
        atoms = atoms[atoms > 0]
        self._frozen.append((atoms, reason))
        self._claimed[atoms] = True

    def claim(self, plane: Tensor) -> None:
        """Mark the atoms of ``plane`` as channels even where nothing is coupled to them."""
        self._claimed[plane.reshape(-1).numpy()] = True

    def mix(self, plane: Tensor) -> None:
        """Note that a normalisation mixes the positions of ``plane``."""
        self.mixed[plane.reshape(-1).numpy()] = True

    def batch(self, plane: Tensor) -> None:
        """Note that the positions of ``plane`` number independent matrix products (heads)."""
        self.batched[plane.reshape(-1).numpy()] = True

    def align(self, plane: Tensor, multiple: int) -> None:
        """Note that an operator takes widths of ``plane`` only that are multiples of a number."""
        atoms = plane.reshape(-1).numpy()
        self.multiple[atoms] = np.lcm(self.multiple[atoms], multiple)

    def pick(self, plane: Tensor, count: int) -> None:
        """Note that an operator picks ``count`` positions of ``plane`` by their values.

        Cutting a position leaves the choice to the others while zeroing it lets it compete on, so
        the positions are mixed. They are frozen unless :meth:`follow` says what the choice is of.
        """
        atoms = plane.reshape(-1).numpy()
        self.picked[atoms] = np.maximum(self.picked[atoms], count)
        self.claim(plane)
        self.mix(plane)

    def follow(self, plane: Tensor, picked: Tensor) -> None:
        """Couple what the positions of a picked plane number with them, position by position."""
        self.couple(plane, picked, "numbered by a fixed tensor")
        self._followed[picked.reshape(-1).numpy()] = True

    def split(self, plane: Tensor) -> None:
        """Note that a view split one labelled dimension into the varying ones of ``plane``.

        Whether the outer or the inner factor may shrink is decided when all coupling is known.
        """
        self._splits.append(plane.squeeze().numpy())

    def solve(
        self,
    ) -> tuple[Int[np.ndarray, " atoms"], Bool[np.ndarray, " atoms"], dict[int, str]]:
        """Return the component of every atom, which atoms are channels, and frozen components.

        Returns:
            The component number per atom, whether any rule saw the atom as a channel, and for each
            frozen component its first reason.
        """
        component = self._components()
        for _ in range(len(self._splits) + 1):
            edges = [edge for block in self._splits for edge in _split_edges(block, component)]
            if not edges:
                break
            self._edges.extend(edges)
            component = self._components()
        alone = np.flatnonzero((self.picked > 0) & ~self._followed)
        reasons: dict[int, str] = {}
        for atoms, reason in [*self._frozen, (alone, "picked by number, followed by no weight")]:
            for number in np.unique(component[atoms]):
                reasons.setdefault(int(number), reason)
        self._claimed[0] = False
        return component, self._claimed, reasons

    def _components(self) -> Int[np.ndarray, " atoms"]:
        edges = np.concatenate([np.zeros((2, 0), np.int64), *self._edges], axis=1)
        graph = scipy.sparse.coo_array(
            (np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), (self.size, self.size)
        )
        return np.asarray(scipy.sparse.csgraph.connected_components(graph, directed=False)[1])


def _split_edges(
    block: Int[np.ndarray, "..."], component: Int[np.ndarray, " atoms"]
) -> Iterable[Int[np.ndarray, "2 edges"]]:
    """Yield the edges that keep a split dimension rectangular after cutting.

    Nothing is needed where each outer row is one unit (heads) or where all rows already agree;
    otherwise position i of every row is coupled, so that the rows stay equally long.
    """
    while block.ndim > 1:
        numbers = np.where(block > 0, component[block], -1)
        rows = numbers.reshape(len(numbers), -1)
        if not (rows == rows[0]).all():
            if (rows == rows[:, :1]).all():
                return
            flat = block.reshape(len(block), -1)
            pairs = np.stack([np.broadcast_to(flat[0], flat.shape).ravel(), flat.ravel()])
            yield pairs[:, (pairs > 0).all(axis=0)]
        block = block[0]


def varying(plane: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which the label of ``plane`` varies."""
    return tuple(dim for dim, size in enumerate(plane.shape) if size > 1)


def collapse(labels: Tensor) -> Tensor:
    """Return ``labels`` with size 1 along each dimension where all values agree."""
    for dim, size in enumerate(labels.shape):
        first = labels.narrow(dim, 0, min(size, 1))
        if size > 1 and bool((labels == first).all()):
            labels = first
    return labels


def collapse_all(planes: Iterable[Tensor]) -> Planes:
    """Return the collapsed planes, those without any varying dimension left out."""
    collapsed = [collapse(plane) for plane in planes]
    return tuple(plane for plane in collapsed if plane.numel() > 1)


def align(plane: Tensor, ndim: int) -> Tensor:
    """Return ``plane`` with leading dimensions of size 1 up to ``ndim``, as broadcasting does."""
    return plane.reshape((1,) * (ndim - plane.ndim) + tuple(plane.shape))


def equal_pieces(coupling: Coupling, pieces: Sequence[Tensor], reason: str) -> None:
    """Couple index i of each piece of a split dimension, so that the pieces stay equally long."""
    for first, second in pairwise(pieces):
        coupling.couple(first, second, reason)
