import numpy as np
import pytest
import torch

from autoprune.errors import SettingsError
from autoprune.network.groups import ChannelGroup
from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.testing.networks import tiny
from autoprune.tuning.stages import stage_plan, stage_steps, stage_width, stages_of


@pytest.mark.parametrize("schedule", ["iterative", "iterative:0", "iterative:1", "two", "", "1"])
def test_other_schedules_are_refused(schedule):
    with pytest.raises(SettingsError, match="expected one-shot or iterative:K"):
        stages_of(schedule)


def test_steps_add_up():
    for stages in range(1, 9):
        for steps in range(stages, 40):
            shares = stage_steps(steps, stages)
            assert (len(shares), sum(shares)) == (stages, steps)
            assert min(shares) >= 1
    with pytest.raises(SettingsError, match="5 prunings need as many training steps, got 4"):
        stage_steps(4, 5)


@pytest.mark.parametrize(("least", "multiple"), [(1, 1), (3, 1), (1, 4), (4, 4)])
def test_width_is_the_smallest_allowed_above_the_line(least, multiple):
    group = ChannelGroup("g", 16, (), least=least, multiple=multiple)
    for width in filter(group.allows, range(1, 17)):
        for share in (0.25, 0.5, 0.75, 1.0):
            line = 16 - share * (16 - width)
            allowed = [n for n in range(1, 17) if group.allows(n) and n >= line - 1e-6]
            assert stage_width(group, width, share) == min(allowed)
        assert stage_width(group, width, 1.0) == width


def test_what_stays_is_the_most_important_of_what_stayed_before():
    tested = tiny("residual")
    network = trace(tested.model, tested.inputs)
    rng = np.random.default_rng(0)
    final = PruningPlan({g.name: tuple(range(max(1, g.size // 4))) for g in network.groups})
    before = PruningPlan({})
    for share in (0.5, 0.75, 1.0):
        scores = {group.name: rng.permutation(group.size) for group in network.groups}
        order = {name: np.argsort(-each) for name, each in scores.items()}
        plan = stage_plan(network, final, order=order, before=before, share=share)
        for group in network.groups:
            there = before.kept.get(group.name, tuple(range(group.size)))
            kept = plan.kept[group.name]
            assert set(kept) <= set(there)
            assert kept == tuple(sorted(kept))
            gone = set(there) - set(kept)
            least = min(scores[group.name][unit] for unit in kept)
            assert all(scores[group.name][unit] < least for unit in gone)
        before = plan
    assert {n: len(k) for n, k in before.kept.items()} == {n: len(k) for n, k in final.kept.items()}


def test_blocks_go_at_once():
    network = trace(SmallResNet(14, widths=(4, 8, 8)), (torch.zeros(2, 3, 8, 8),))
    final = PruningPlan({}, (network.blocks[0].name,))
    order = {group.name: np.arange(group.size) for group in network.groups}
    plan = stage_plan(network, final, order=order, before=PruningPlan({}), share=0.5)
    assert plan == final
