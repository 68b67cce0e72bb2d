from __future__ import annotations

import numpy as np
import pytest

from autoprune.tasks.splits import stratified_split


def _data(counts):
    targets = np.repeat(np.arange(len(counts)), counts)
    return [f"class{label}/image{index}.png" for index, label in enumerate(targets)], targets


def test_parts_are_disjoint_cover_everything_and_hold_the_classes_in_proportion():
    keys, targets = _data([50, 100, 31])
    parts = stratified_split(keys, targets, fractions=(0.6, 0.2, 0.2))
    assert sorted(np.concatenate(parts)) == list(range(181))
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        counts = np.bincount(targets[part], minlength=3)
        assert np.abs(counts - share * np.array([50, 100, 31])).max() <= 1


def test_every_prefix_is_stratified():
    keys, targets = _data([40, 40, 120])
    (order,) = stratified_split(keys, targets, fractions=(1.0,))
    for length in range(1, 201):
        counts = np.bincount(targets[order[:length]], minlength=3)
        assert np.abs(counts - length * np.array([0.2, 0.2, 0.6])).max() <= 1.5


def test_assignment_depends_on_the_keys_and_not_on_the_order_of_the_samples():
    keys, targets = _data([30, 30])
    shuffle = np.random.default_rng(0).permutation(60)
    first = stratified_split(keys, targets, fractions=(0.5, 0.5))
    second = stratified_split([keys[i] for i in shuffle], targets[shuffle], fractions=(0.5, 0.5))
    for part, same in zip(first, second, strict=True):
        assert [keys[i] for i in part] == [keys[shuffle[i]] for i in same]


def test_assignment_never_changes_between_versions():
    # Weights trained on these training splits are shipped: a change would leak test images.
    parts = stratified_split("abcdefgh", np.array([0, 1] * 4), fractions=(0.5, 0.5))
    assert [part.tolist() for part in parts] == [[3, 2, 5, 4], [1, 0, 7, 6]]


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.5, -0.5)])
def test_shares_that_do_not_sum_to_one_are_refused(fractions):
    with pytest.raises(ValueError, match="sum to one"):
        stratified_split(["a"], np.array([0]), fractions=fractions)


def test_keys_and_targets_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="2 keys for 1 targets"):
        stratified_split(["a", "b"], np.array([0]), fractions=(1.0,))
