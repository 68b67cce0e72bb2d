from __future__ import annotations

import dataclasses

import numpy as np

from autoprune.network.groups import ChannelGroup, ParamSlice
from autoprune.testing.networks import tiny
from autoprune.testing.plans import half_of, half_plan, random_plans


def group(size, **limits):
    member = ParamSlice("weight", 0, np.arange(size).reshape(-1, 1))
    return ChannelGroup("group", size, (member,), **limits)


def test_half_is_spread_evenly():
    assert half_of(group(8)) == (0, 2, 4, 6)
    assert half_of(group(5)) == (0, 1, 3)


def test_half_respects_what_a_group_allows():
    assert len(half_of(group(12, multiple=4))) == 8
    assert len(half_of(group(8, least=6))) == 6
    assert len(half_of(group(6, multiple=8))) == 6


def test_random_plans_fit_their_network_and_repeat_themselves():
    network = tiny("chain").network
    limited = dataclasses.replace(
        network, groups=tuple(dataclasses.replace(g, least=2, multiple=2) for g in network.groups)
    )
    plans = random_plans(limited, 20)

    for plan in [half_plan(limited), *plans]:
        plan.check(limited)
    assert plans == random_plans(limited, 20)
    assert plans != random_plans(limited, 20, seed=1)
    assert len({len(plan.kept["conv1"]) for plan in plans}) > 1
