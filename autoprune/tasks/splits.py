"""Stratified splits that never change: the order comes from hashes, not from a generator.

A generator's stream may change between library versions, and test images would then wander into
the training split of weights that were trained earlier. A hash of a sample's own key also keeps
most samples where they were when others are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64


def stratified_split(
    keys: Sequence[str],
    targets: Int[np.ndarray, " n"],
    *,
    fractions: Sequence[float],
) -> list[Int[np.ndarray, " _"]]:
    """Return disjoint index arrays that cover all samples, each with the classes in proportion.

    Every prefix of a returned array holds the classes in proportion too, so a part of a split
    can be used by taking its beginning.

    >>> [part.tolist() for part in stratified_split("abcdef", np.array([0, 0, 0, 1, 1, 1]),
    ...                                             fractions=(2 / 3, 1 / 3))]
    [[3, 2, 5, 1], [4, 0]]

    Args:
        keys: A stable name for every sample, e.g. its path in the data set.
        targets: Class index of every sample.
        fractions: Share of each split; they sum to one.

    Raises:
        ValueError: The fractions are negative or do not sum to one, or lengths differ.
    """
    shares = np.asarray(fractions, float)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"the shares of a split sum to one, not {shares.tolist()}")
    if len(keys) != len(targets):
        raise ValueError(f"{len(keys)} keys for {len(targets)} targets")
    ranks = np.array([_rank(key) for key in keys], np.uint64)
    order = np.lexsort((ranks, targets))
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for members in np.split(order, np.flatnonzero(np.diff(targets[order])) + 1):
        bounds = np.floor(np.cumsum(shares)[:-1] * len(members) + 0.5).astype(np.intp)
        for part, chunk in zip(parts, np.split(members, bounds), strict=True):
            part.append(chunk)
    return [_interleave(np.concatenate(part), targets, ranks) for part in parts]


def _rank(key: str) -> int:
    """Return the first 64 bits of the key's SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _interleave(
    part: Int[np.ndarray, " n"], targets: Int[np.ndarray, " all"], ranks: UInt64[np.ndarray, " all"]
) -> Int[np.ndarray, " n"]:
    """Return ``part``, grouped by class, mixed so that every prefix is stratified."""
    labels = targets[part]
    _, first, label, counts = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    within = np.arange(len(part)) - first[label]
    place: Float[np.ndarray, " n"] = (within + 0.5) / counts[label]
    return part[np.lexsort((ranks[part], place))]
