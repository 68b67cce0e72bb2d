from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.trace import trace
from autoprune.pruning.importance.l2 import L2
from autoprune.pruning.importance.synflow import SynFlow
from autoprune.testing.criteria import CriterionSuite
from autoprune.testing.networks import TINY_NETWORKS, tiny

CONVOLUTIONAL = sorted(set(TINY_NETWORKS) - {"attention"})


class TestSynFlow(CriterionSuite):
    def build(self):
        return SynFlow(rounds=2, kept=0.5)


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


def flow_of(model, group, weights):
    """Return the flow of every unit by finite differences of the output in a common factor."""
    flows = np.zeros(group.size)
    step = 1e-6
    ones = torch.ones(2, 3, 8, 8, dtype=torch.float64)
    for unit in range(group.size):
        for member in group.members:
            if member.path not in weights:
                continue
            totals = []
            for factor in (1 + step, 1 - step):
                moved = copy.deepcopy(model)
                weight = moved.get_parameter(member.path)
                with torch.no_grad():
                    for position in member.indices[unit]:
                        weight.select(member.dim, int(position)).mul_(factor)
                    totals.append(float(moved(ones).sum()))
            flows[unit] += (totals[0] - totals[1]) / (2 * step)
    return flows


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_one_round_is_the_derivative_of_the_flow_by_a_factor_on_the_weights(name):
    case = tiny(name)
    model = without_nonlinearity(case.model)
    weights = {path for path, p in model.named_parameters() if p.ndim > 1}
    criterion = SynFlow(rounds=1)
    found = criterion.score(case.network)
    assert criterion.notes == {}
    for group in case.groups:
        np.testing.assert_allclose(found[group.name], flow_of(model, group, weights), rtol=1e-4)


def test_rounds_take_away_what_flows_least_and_look_again():
    case = tiny("chain")
    model = without_nonlinearity(case.model)
    weights = {path for path, p in model.named_parameters() if p.ndim > 1}
    rounds, kept = 3, 0.3
    expected = {group.name: np.zeros(group.size) for group in case.groups}
    alive = {group.name: list(range(group.size)) for group in case.groups}
    for turn in range(1, rounds + 1):
        flows = {group.name: flow_of(model, group, weights) for group in case.groups}
        for group in case.groups:
            flow = flows[group.name]
            for unit in alive[group.name]:
                expected[group.name][unit] = turn - 1 + flow[unit] / flow.max()
            stay = max(1, round(group.size * kept ** (turn / rounds)))
            by_flow = sorted(alive[group.name], key=lambda unit, flow=flow: flow[unit])
            gone = by_flow[: len(by_flow) - stay]
            alive[group.name] = by_flow[len(by_flow) - stay :]
            with torch.no_grad():
                for member in group.members:
                    if member.path in dict(model.named_parameters()):
                        weight = model.get_parameter(member.path)
                        for unit in gone:
                            weight.select(member.dim, int(member.indices[unit, 0])).zero_()
    found = SynFlow(rounds=rounds, kept=kept).score(case.network)
    for group, scores in expected.items():
        np.testing.assert_allclose(found[group], scores, rtol=1e-4)


def test_normalised_streams_and_attention_let_through():
    criterion = SynFlow(rounds=1)
    found = criterion.score(tiny("attention").network)
    assert criterion.notes == {}
    assert all((scores > 0).all() for scores in found.values())


class Centred(nn.Module):
    """A normalisation written out, of which nothing is left on ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6, bias=False)
        self.second = nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        x = (x - x) * x  # whatever it is, its derivative is zero on ones as well
        return self.second(x)


def test_where_nothing_flows_l2_magnitude_ranks_and_the_group_is_listed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Centred().eval()
    network = trace(model, (torch.randn(2, 4),))
    assert [group.name for group in network.groups] == ["first"]
    criterion = SynFlow()
    found = criterion.score(network)
    assert criterion.notes == {"first": "nothing flows through it; scored by L2 magnitude"}
    np.testing.assert_array_equal(found["first"], L2().score(network)["first"])


def test_options_are_checked_at_once():
    with pytest.raises(PruningError, match=r"rounds >= 1 and kept in \(0, 1\], but got 0 and 0.1"):
        SynFlow(rounds=0)
