import dataclasses

import numpy as np
import pytest

from autoprune.latency.kernels import FAMILIES, from_layers
from autoprune.latency.roofline import KernelWork
from autoprune.latency.samples import joined, network_samples, shapes_of
from autoprune.testing.measurements import SLOW, measured_kernels, measured_networks, random_layers


def test_work_is_that_of_the_predictor():
    rng = np.random.default_rng(0)
    rows = [*random_layers(rng), *random_layers(rng), ["gconv", 40, 40, 3, 1, 4, 7, 7, 7, 7]]
    table = from_layers(rows, "tensorrt")
    shapes = shapes_of(table)
    work = KernelWork(table, paddings=[(8, 8)] * len(table.kernels), bytes_per_element=2)
    cin, cout, product = (part[:, 0] for part in work.channels(np.zeros((1, 0), int)))
    macs, moved = shapes.work(np.full((len(FAMILIES), 2), 8.0), 2)
    np.testing.assert_allclose(macs, work.macs * product, rtol=1e-6)
    expected = work.reads * cin + work.writes * cout + work.weights * product
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_taken_samples_keep_their_kernels():
    samples = network_samples(measured_networks(6))
    kept = np.array([True, False, True, True, False, True])
    part = samples.take(kept)
    assert part.names == ("net0", "net2", "net3", "net5")
    assert part.origins == samples.origins
    assert part.origins[part.origin[2]] == SLOW
    for new, old in enumerate(np.flatnonzero(kept)):
        np.testing.assert_array_equal(
            part.shapes.values[part.sample == new], samples.shapes.values[samples.sample == old]
        )


def test_joined_samples_keep_their_origins():
    left, right = network_samples(measured_networks(5)), measured_kernels()
    together = joined([left, right])
    assert len(together) == 5 + len(right)
    assert together.whole.sum() == 5
    assert together.sample.max() == len(together) - 1
    names = [together.origins[i].repository for i in together.origin]
    assert names[:5] == ["a/b", "a/b", "a/b", "c/d", "a/b"]
    assert set(names[5:]) == {"a/b"}
    assert together.families == ["conv", "dwconv", "linear", "pool"]


def test_networks_of_equal_work_are_one_group():
    first, second = measured_networks(2)
    renamed = dataclasses.replace(first, network="twin", origin=SLOW)
    same, other, twin = network_samples([first, second, renamed]).groups
    assert same == twin
    assert same != other


def test_no_samples_have_no_kernels():
    empty = network_samples(measured_networks(2)).take(np.zeros(2, bool))
    assert (len(empty), len(empty.shapes)) == (0, 0)
    with pytest.raises(ValueError, match="not in tuple"):
        empty.shapes["nonsense"]
