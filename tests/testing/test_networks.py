from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.errors import UnknownNameError
from autoprune.network.trace import trace
from autoprune.testing.networks import (
    CLASSES,
    TINY_LANGUAGE_MODELS,
    TINY_NETWORKS,
    VOCABULARY,
    tiny,
)

EVERYONE = [*TINY_NETWORKS, *TINY_LANGUAGE_MODELS]


@pytest.mark.parametrize("name", EVERYONE)
def test_runs_and_is_reproducible(name):
    state = torch.get_rng_state()
    first, second = tiny(name), tiny(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in first.model.modules())
    output = first.model(*first.inputs)
    assert output.shape == ((2, CLASSES) if name in TINY_NETWORKS else (2, 8, VOCABULARY))
    assert torch.equal(output, second.model(*second.inputs))
    assert not torch.equal(output, tiny(name, seed=1).model(*first.inputs))
    assert float(output.detach().std()) > 0.05


@pytest.mark.parametrize("name", EVERYONE)
def test_groups_written_by_hand_fit_the_model(name):
    case = tiny(name)
    state = case.model.state_dict()
    for group in case.groups:
        assert group.name in dict(case.model.named_modules())
        for member in group.members:
            assert member.indices.shape[0] == group.size
            assert len(np.unique(member.indices)) == member.indices.size
            assert member.indices.max() < state[member.path].shape[member.dim]


def places(group):
    """Return for each unit everything it occupies, as a set of sets."""
    return {
        frozenset(
            (member.path, member.dim, int(position))
            for member in group.members
            for position in member.indices[unit]
        )
        for unit in range(group.size)
    }


@pytest.mark.parametrize("name", EVERYONE)
def test_the_tracer_finds_the_groups_written_by_hand(name):
    case = tiny(name)
    found = {group.name: places(group) for group in trace(case.model, case.inputs).groups}
    assert found == {group.name: places(group) for group in case.groups}


def test_what_follows_a_token_is_the_next_input():
    for tokens, targets in tiny("language").batches(3, 2):
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        assert int(targets.max()) < VOCABULARY


def test_an_unknown_network_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'chian'; did you mean 'chain'\?"):
        tiny("chian")
