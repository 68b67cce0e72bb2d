from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from autoprune.network.trace import trace
from autoprune.pruning.importance import nisp
from autoprune.pruning.importance.l2 import L2
from autoprune.pruning.importance.nisp import NISP, answer_weights
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import CLASSES, TINY_NETWORKS, tiny


class TestNISP(CriterionSuite):
    def build(self):
        return NISP()


def naive_weights(answers, alpha):
    """Return infinite feature selection's weights by adding up paths of every length."""
    count = answers.shape[1]
    spread = answers.std(0) / answers.std(0).max()
    graph = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            rank = scipy.stats.spearmanr(answers[:, i], answers[:, j]).statistic
            graph[i, j] = alpha * max(spread[i], spread[j]) + (1 - alpha) * (1 - abs(rank))
    share = 0.9 / np.abs(np.linalg.eigvals(graph)).max()
    total, path = np.zeros((count, count)), np.eye(count)
    for _ in range(400):
        path = share * path @ graph
        total += path
    return total.sum(1)


def test_answers_weigh_what_all_paths_between_them_do():
    answers = np.random.default_rng(0).normal(size=(12, 5)) * [1, 2, 3, 4, 5]
    np.testing.assert_allclose(answer_weights(answers, 0.3), naive_weights(answers, 0.3), rtol=1e-6)


def without_nonlinearity(model):
    """Return a copy with absolute parameters whose activations do nothing, in double precision."""
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            setattr(model, path, nn.Identity())
    return model


@pytest.mark.parametrize("name", sorted(set(TINY_NETWORKS) - {"attention"}))
def test_equals_a_loop_over_what_is_passed_back(name):
    """One more of a unit at one reader, and the weighted answers grow by its importance."""
    case = tiny(name)
    batches = case.batches(5, 4)
    criterion = NISP()
    found = criterion.score(case.network, batches)
    assert criterion.notes == {}
    with torch.no_grad():
        answers = torch.cat([case.model(images) for images, _ in batches]).double().numpy()
    weights = torch.from_numpy(naive_weights(answers, 0.5))
    model = without_nonlinearity(case.model)
    ones = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    for group in case.groups:
        expected = np.zeros(group.size)
        for reader in case.heard(group, batches):
            module = model.get_submodule(reader.member.path.rpartition(".")[0])
            for unit in range(group.size):
                for channel, _, _ in reader.channels(unit):

                    def more(_, args, channel=channel):
                        changed = args[0].clone()
                        changed[:, channel] += 1
                        return (changed,)

                    with torch.no_grad():
                        before = model(ones)[0] @ weights
                        hook = module.register_forward_pre_hook(more)
                        expected[unit] += float(model(ones)[0] @ weights - before)
                        hook.remove()
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_an_answer_that_never_changes_weighs_less():
    answers = np.random.default_rng(0).normal(size=(20, CLASSES))
    answers[:, 2] = 1.0
    weights = answer_weights(answers, 0.9)
    assert weights.argmin() == 2


def test_too_many_answers_are_weighted_by_their_spread_and_all_groups_listed(monkeypatch):
    monkeypatch.setattr(nisp, "MANY", 4)
    case = tiny("chain")
    criterion = NISP()
    criterion.score(case.network, case.batches(4))
    assert criterion.notes == dict.fromkeys(
        ("conv1", "conv2"), "more than 4 answers, weighted by their standard deviation"
    )


class Plain(nn.Module):
    """A product with a bare parameter, whose role no module type tells."""

    def __init__(self):
        super().__init__()
        self.write = nn.Linear(192, 3)
        self.read = nn.Parameter(torch.randn(3, 5))

    def forward(self, images):
        return self.write(images.flatten(1)).relu() @ self.read


def test_a_group_with_unknown_readers_is_scored_by_l2_and_listed():
    case = tiny("chain")
    network = trace(Plain().eval(), case.inputs)
    criterion = NISP()
    found = criterion.score(network, case.batches(4))
    (group,) = network.groups
    assert criterion.notes == {group.name: "not all readers are known; scored by L2 magnitude"}
    np.testing.assert_array_equal(found[group.name], L2().score(network)[group.name])
