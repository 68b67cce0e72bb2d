from __future__ import annotations

import copy
import dataclasses
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.trace import trace
from autoprune.pruning.activations import known_readers
from autoprune.pruning.gates import (
    cross_entropy,
    gate_rows,
    gradient_copy,
    input_gradients,
    labelled,
    mean_gradients,
)
from autoprune.pruning.reads import Weights
from autoprune.testing.networks import TINY_NETWORKS, tiny


def differences(model, member, units, batch):
    """Return one row per image: finite differences of its loss by the gate of each unit there."""
    rows = np.zeros((len(batch[0]), units))
    for unit in range(units):
        losses = []
        for gate in (1 + 1e-6, 1 - 1e-6):
            moved = copy.deepcopy(model)
            weight = moved.get_parameter(member.path)
            with torch.no_grad():
                for position in member.indices[unit]:
                    weight.select(member.dim, int(position)).mul_(gate)
                losses.append(F.cross_entropy(moved(batch[0]), batch[1], reduction="none"))
        rows[:, unit] = ((losses[0] - losses[1]) / 2e-6).numpy()
    return rows


def check(network, batch, **options):
    """Compare the rows of every reader of every group with finite differences."""
    known = known_readers(network)
    (found,) = gate_rows(network, known, [batch], loss=cross_entropy, **options)
    for group in network.groups:
        assert known[group.name]
        for reader, rows in zip(known[group.name], found[group.name], strict=True):
            expected = differences(network.model, reader.member, group.size, batch)
            np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-8)


@pytest.fixture
def single_images(monkeypatch):
    """Count the passes of single images."""
    calls = []
    plain = torch.nn.functional.cross_entropy

    def counted(output, targets, **options):
        calls.append(len(targets))
        return plain(output, targets, **options)

    monkeypatch.setattr(F, "cross_entropy", counted)
    return calls


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_rows_equal_finite_differences_of_gates(name):
    case = tiny(name, dtype=torch.float64)
    check(case.network, case.batches(3)[0], images=8)


def test_one_pass_serves_all_images_and_two_tell_their_order(single_images):
    case = tiny("residual")
    known = known_readers(case.network)
    list(gate_rows(case.network, known, case.batches(4, 4), loss=cross_entropy, images=4))
    assert sorted(single_images) == [1, 1, 4, 4]


class Sequence(nn.Module):
    """Attention over a sequence that comes before the batch, then a layer that comes after it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, images):
        sequence = self.embed(images.flatten(2)[:, :, :5].permute(2, 0, 1))
        mixed = self.attention(sequence, sequence, sequence, need_weights=False)[0]
        return self.head(self.hidden(mixed.transpose(0, 1)).relu().mean(1))


def random_network(model, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model().to(dtype).eval()
    images = tiny("chain", dtype=dtype).inputs
    return trace(model, images)


def test_rows_of_a_sequence_before_the_batch_find_their_images(single_images):
    network = random_network(Sequence)
    batch = tiny("chain", dtype=torch.float64).batches(3)[0]
    check(network, batch, images=8)
    known = known_readers(network)
    single_images.clear()
    list(gate_rows(network, known, [batch, batch], loss=cross_entropy, images=8))
    assert sorted(single_images) == [1, 1, 3, 3]


class Product(torch.autograd.Function):
    """A product that autograd sees as one step of a kind of its own."""

    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs, weight)
        return inputs @ weight.T

    @staticmethod
    def backward(ctx, slope):
        inputs, weight = ctx.saved_tensors
        return slope @ weight, slope.T @ inputs


class Own(nn.Linear):
    def forward(self, inputs):
        return Product.apply(inputs, self.weight)


class Hidden(nn.Module):
    """A layer whose reader no operation that autograd knows shows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(192, 6)
        self.second = Own(6, 5, bias=False)

    def forward(self, images):
        return self.second(self.first(images.flatten(1)).relu())


def test_where_an_operation_is_not_seen_each_image_has_its_own_pass(single_images):
    network = random_network(Hidden)
    batch = tiny("chain", dtype=torch.float64).batches(3)[0]
    known = known_readers(network)
    list(gate_rows(network, known, [batch], loss=cross_entropy, images=8))
    assert sorted(single_images) == [1, 1, 1, 1, 1, 3]
    check(network, batch, images=8)


def test_a_transposed_convolution_reads_through_its_first_dimension():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
            self.head = nn.Linear(6, 5)

        def forward(self, images):
            return self.head(self.up(self.first(images).relu()).relu().mean((2, 3)))

    network = random_network(Up)
    check(network, tiny("chain", dtype=torch.float64).batches(3)[0], images=8)


def test_without_known_readers_the_gate_is_on_every_parameter():
    case = tiny("chain", dtype=torch.float64)
    batch = case.batches(3)[0]
    known = {name: () for name in known_readers(case.network)}
    (found,) = gate_rows(case.network, known, [batch], loss=cross_entropy, images=8)
    parameters = dict(case.model.named_parameters())
    for group in case.groups:
        (rows,) = found[group.name]
        sites = [member for member in group.members if member.path in parameters]
        expected = sum(differences(case.model, site, group.size, batch) for site in sites)
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-8)


def test_what_comes_back_is_through_one_reader_alone():
    """On a residual path the gradient by the stream itself holds all later readers too."""
    case = tiny("residual", dtype=torch.float64)
    model = gradient_copy(case.network).requires_grad_(True)
    images = case.batches(2)[0][0]
    weights = Weights(model, ["square.weight", "head.2.weight"])
    heard = input_gradients(model(images).sum(), weights, list(model.parameters()))
    (values, gradient, how) = heard["square.weight"][0]
    assert values.shape == gradient.shape == (2, 8, 8, 8)
    assert how.dim == 1
    back = model.get_parameter("head.2.weight").sum(0)[None, :, None, None].expand(2, 8, 8, 8) / 64
    expected = F.conv_transpose2d(back, model.get_parameter("square.weight"))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("images", [1, 3, 8])
def test_mean_gradients_are_those_of_the_mean_loss(images):
    case = tiny("flatten", dtype=torch.float64)
    batches = case.batches(5, 2)
    model = gradient_copy(case.network)
    weights = {"hidden.weight": model.get_parameter("hidden.weight")}
    options = {"loss": cross_entropy, "images": images}
    found = mean_gradients(model, weights, batches, **options)["hidden.weight"]
    everything = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    plain = copy.deepcopy(case.model)
    F.cross_entropy(plain(everything[0]), everything[1]).backward()
    torch.testing.assert_close(found, plain.hidden.weight.grad)
    squares = mean_gradients(model, weights, batches, power=2, **options)["hidden.weight"]
    expected = torch.zeros_like(squares)
    for part, labels in labelled(batches, images, plain):
        plain.zero_grad()
        F.cross_entropy(plain(part), labels).backward()
        expected += len(part) / 7 * plain.hidden.weight.grad**2
    torch.testing.assert_close(squares, expected)
    assert not weights["hidden.weight"].requires_grad


def test_the_loss_is_a_mean_over_tokens_that_have_a_target():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator)
    targets = torch.tensor([[4, 0, -100], [1, -100, -100]])
    chosen = [logits[0, 0].softmax(0)[4], logits[0, 1].softmax(0)[0], logits[1, 0].softmax(0)[1]]
    expected = -torch.stack(chosen).log().mean()
    torch.testing.assert_close(cross_entropy(logits, targets), expected)
    held = types.SimpleNamespace(logits=logits)
    torch.testing.assert_close(cross_entropy(held, targets), expected)


def test_classes_of_pixels_stand_behind_the_batch():
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(24).reshape(2, 3, 4) % 5
    by_pixel = logits.movedim(1, -1).reshape(-1, 5)
    expected = cross_entropy(by_pixel, targets.flatten())
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


def test_logits_are_expected():
    with pytest.raises(PruningError, match="tensor of logits, but got a tuple; pass loss="):
        cross_entropy((torch.zeros(1),), torch.zeros(1))


def test_a_network_without_groups_has_no_gates():
    case = tiny("chain")
    network = dataclasses.replace(case.network, groups=())
    found = gate_rows(network, {}, case.batches(2), loss=cross_entropy, images=2)
    assert list(found) == [{}]
