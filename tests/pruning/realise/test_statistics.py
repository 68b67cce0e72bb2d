from __future__ import annotations

import pytest
import torch

from autoprune.pruning.merge import Calibrated, Merger
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realise.statistics import Statistics
from autoprune.pruning.surgery import Surgeon
from autoprune.testing.networks import TINY_NETWORKS, tiny
from autoprune.testing.plans import half_of
from autoprune.testing.realisers import RealiserSuite


class TestStatistics(RealiserSuite):
    def build(self):
        return Statistics()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_biases_take_over_the_means_of_what_is_gone(name):
    """Naive: one output, one removed input, one kernel tap at a time, from hooks."""
    case = tiny(name, dtype=torch.float64)
    batches = case.batches(12, 5)
    realiser = Statistics()
    realiser.prepare(case.network, batches)
    compared = 0
    for group in case.groups:
        kept = half_of(group)
        plan = PruningPlan({group.name: kept})
        cut, repaired = Surgeon(case.network).cut(plan), realiser(plan)
        for heard in case.heard(group, batches):
            before = cut.get_submodule(heard.member.path.rpartition(".")[0])
            after = repaired.get_submodule(heard.member.path.rpartition(".")[0])
            assert torch.equal(before.weight, after.weight)
            if before.bias is None:
                continue
            gained = torch.zeros(len(heard.weight), dtype=torch.float64)
            for unit in set(range(group.size)) - set(kept):
                for channel, _, place in heard.channels(unit):
                    mean = heard.values[:, channel].mean()
                    for output, weight in enumerate(heard.weight):
                        gained[output] += weight[place].sum() * mean
            # The layer may lose outputs too, where it writes what it reads.
            outputs = list(kept) if len(after.bias) < len(gained) else slice(None)
            torch.testing.assert_close(after.bias.detach(), before.bias + gained[outputs])
            compared += gained.abs().max() > 1e-3
    assert compared


def test_without_a_bias_nothing_but_statistics_changes():
    case = tiny("chain")
    plan = PruningPlan({"conv1": (0, 3, 4, 6)})  # read by a convolution without bias
    merger = Merger(Calibrated.of(case.network, case.batches(8), means_only=True))
    assert not merger.replaced(plan)
