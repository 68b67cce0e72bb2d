from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.network.groups import ParamSlice
from autoprune.pruning.contributions import contribution_moments
from autoprune.testing.networks import TINY_NETWORKS, tiny


def contributions(reader, units):
    """Return what each unit adds to every output entry of a reader, by running it on that alone."""
    found = []
    for unit in range(units):
        module = copy.deepcopy(reader.module)
        with torch.no_grad():
            keep = torch.zeros(module.weight.shape[1], dtype=torch.bool)
            keep[[place for _, _, place in reader.channels(unit)]] = True
            module.weight[:, ~keep] = 0
            if module.bias is not None:
                module.bias.zero_()
            found.append(module(reader.inputs).flatten())
    return torch.stack(found).numpy()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_the_moments_over_all_entries(name):
    # Fixed draws: 4,000 of at most 2,000 entries leave an error of a few per cent.
    case = tiny(name)
    batches = case.batches(2)
    found = contribution_moments(case.network, batches, samples=2000, seed=0)
    for group in case.groups:
        expected = np.zeros((group.size, group.size))
        heard = case.heard(group, batches)
        for reader in heard:
            terms = contributions(reader, group.size)
            moment = terms @ terms.T
            expected += moment / np.diagonal(moment).mean() / len(heard)
        np.testing.assert_allclose(found[group.name], expected, atol=0.1 * expected.max())


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 3)),
        lambda: nn.ConvTranspose2d(8, 6, 2, stride=2),
    ],
    ids=["strided", "transposed"],
)
def test_terms_of_other_convolutions(layer):
    """With strides as long as the kernel no outputs of the transposed one overlap."""
    case = tiny("chain")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case.model.conv2 = layer()
    dim = 0 if case.model.conv2.transposed else 1
    reader = ParamSlice("conv2.weight", dim, np.arange(8)[:, None])
    group = dataclasses.replace(case.groups[0], members=(*case.groups[0].members[:5], reader))
    network = dataclasses.replace(case.network, groups=(group,))
    batches = case.batches(2)
    with torch.no_grad():
        inputs = case.model.relu1(case.model.norm1(case.model.conv1(batches[0][0])))
        terms = []
        for unit in range(8):
            one = torch.zeros_like(inputs)
            one[:, unit] = inputs[:, unit]
            bias = case.model.conv2.bias[:, None, None]
            terms.append((case.model.conv2(one) - bias).flatten().numpy())
    expected = np.stack(terms) @ np.stack(terms).T
    expected /= np.diagonal(expected).mean()
    found = contribution_moments(network, batches, samples=4000, seed=0)["conv1"]
    np.testing.assert_allclose(found, expected, atol=0.1 * expected.max())


def test_seeds_draw_other_entries_and_repeat_theirs():
    case = tiny("chain")
    batches = case.batches(2)
    first, again, other = (
        contribution_moments(case.network, batches, samples=4, seed=seed)["conv1"]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
