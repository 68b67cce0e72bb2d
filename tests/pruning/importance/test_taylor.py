from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.pruning.importance.taylor import Taylor
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_LANGUAGE_MODELS, TINY_NETWORKS, tiny


class TestTaylor(CriterionSuite):
    def build(self):
        return Taylor(images=4)


def loss_with_gate(model, members, unit, gate, batch):
    """Return the loss with every parameter entry of one unit at ``members`` scaled by ``gate``."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for member in members:
            for position in member.indices[unit]:
                parameters[member.path].select(member.dim, int(position)).mul_(gate)
        return float(F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten()))


def squared_differences(model, members, units, batches):
    """Return the mean square of the loss's finite difference by the gate, weighted by images."""
    step = 1e-6
    images = sum(len(inputs) for inputs, _ in batches)
    scores = np.zeros(units)
    for unit, batch in itertools.product(range(units), batches):
        above = loss_with_gate(model, members, unit, 1 + step, batch)
        below = loss_with_gate(model, members, unit, 1 - step, batch)
        scores[unit] += len(batch[0]) / images * ((above - below) / (2 * step)) ** 2
    return scores


@pytest.mark.parametrize("name", [*TINY_NETWORKS, *TINY_LANGUAGE_MODELS])
def test_equals_the_finite_difference_of_a_gate_on_all_readers(name):
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(3, 2)
    criterion = Taylor()
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    for group in case.groups:
        readers = [m for m in group.members if m.dim == 1 and m.path != "table.weight"]
        expected = squared_differences(case.model, readers, group.size, batches)
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["chain", "residual", "grouped", "flatten"])
def test_equals_the_gate_on_everything_that_writes_the_unit(name):
    # Behind ReLU both gates are the same; a square layer's columns only read.
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(5)
    group = case.groups[0]
    writers = [
        member
        for member in group.members
        if ("norm" in member.path and "running" not in member.path)
        or (member.path.startswith("square") and member.dim == 0)
    ]
    assert len(writers) >= 2
    expected = squared_differences(case.model, writers, group.size, batches)
    found = Taylor().score(case.network, batches)[group.name]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


def test_a_transposed_convolution_reads_through_its_first_dimension():
    case = tiny("chain", dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        case.model.conv2 = nn.ConvTranspose2d(8, 6, 3).double()
    each = np.arange(8)[:, None]
    reader = ParamSlice("conv2.weight", 0, each)
    first = dataclasses.replace(case.groups[0], members=(*case.groups[0].members[:5], reader))
    network = dataclasses.replace(case.network, groups=(first,))
    batches = case.batches(4)
    expected = squared_differences(case.model, [reader], 8, batches)
    np.testing.assert_allclose(Taylor().score(network, batches)["conv1"], expected, rtol=1e-4)


class Plain(nn.Module):
    """A product with a bare parameter, whose role no module type tells."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.write = nn.Linear(4, 3).double()
        self.read = nn.Parameter(torch.randn(3, 5, generator=generator, dtype=torch.float64))

    def forward(self, images):
        return self.write(images).relu() @ self.read


def test_where_a_reader_is_unknown_the_gate_is_on_all_and_the_group_is_listed():
    generator = torch.Generator().manual_seed(0)
    model = Plain()
    with torch.no_grad():
        for parameter in model.write.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    each = np.arange(3)[:, None]
    paths = ("write.weight", "write.bias", "read")
    group = ChannelGroup("write", 3, tuple(ParamSlice(path, 0, each) for path in paths))
    network = dataclasses.replace(
        tiny("chain").network, model=model, inputs=(images,), groups=(group,)
    )
    batches = [(images, torch.arange(6) % 5)]
    criterion = Taylor()
    found = criterion.score(network, batches)["write"]
    assert list(criterion.notes) == ["write"]
    assert criterion.notes["write"].startswith("not all readers are known")
    expected = squared_differences(model, group.members, 3, batches)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gradients_are_taken_over_the_same_images_however_they_arrive():
    case = tiny("residual", dtype=torch.float64)
    together = case.batches(8)
    apart = [
        (inputs, targets)
        for inputs, targets in zip(together[0][0].split(4), together[0][1].split(4), strict=True)
    ]
    found = Taylor(images=4).score(case.network, together)
    for group, scores in Taylor(images=4).score(case.network, apart).items():
        np.testing.assert_allclose(found[group], scores)
    at_once = Taylor(images=8).score(case.network, together)
    assert not np.allclose(at_once["stem"], found["stem"])


def test_a_layer_that_never_runs_does_not_count():
    case = tiny("chain", dtype=torch.float64)
    plain = Taylor().score(case.network, case.batches(4))
    with torch.random.fork_rng(devices=[]):
        # A submodule of a convolution: its parameters exist, but no forward pass reaches it.
        case.model.conv1.spare = nn.Linear(8, 2).double()
    spare = dataclasses.replace(case.groups[0].members[0], path="conv1.spare.weight", dim=1)
    first = dataclasses.replace(case.groups[0], members=(*case.groups[0].members, spare))
    network = dataclasses.replace(case.network, groups=(first, case.groups[1]))
    for group, scores in Taylor().score(network, case.batches(4)).items():
        np.testing.assert_allclose(scores, plain[group])


def test_another_loss_takes_what_the_model_returns():
    case = tiny("chain", dtype=torch.float64)
    batches = case.batches(4)
    plain = Taylor().score(case.network, batches)

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return {"logits": self.inner(images)}

    groups = tuple(
        dataclasses.replace(
            group,
            members=tuple(dataclasses.replace(m, path=f"inner.{m.path}") for m in group.members),
        )
        for group in case.groups
    )
    network = dataclasses.replace(case.network, model=Wrapped(case.model), groups=groups)
    with pytest.raises(PruningError, match="tensor of logits, but got a dict; pass loss="):
        Taylor().score(network, batches)
    loss = lambda output, targets: F.cross_entropy(output["logits"], targets)  # noqa: E731 - short
    for group, scores in Taylor(loss=loss).score(network, batches).items():
        np.testing.assert_allclose(scores, plain[group])
