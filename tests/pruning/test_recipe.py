from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.recipe import Cut, Recipe
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified


class Attention(nn.Module):
    """Knows its number of heads as an attribute, and the width of a slice by itself."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, 2).permute(2, 0, 3, 1, 4)
        y = (qkv[0] @ qkv[1].transpose(-1, -2)).softmax(-1) @ qkv[2]
        return self.out(y.transpose(1, 2).reshape(batch, tokens, 8))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = Attention(), nn.BatchNorm1d(5)

    def forward(self, x):
        return x + self.norm(self.attention(x))


def make():
    return nn.Sequential(nn.Linear(3, 8), Block(), Block(), nn.Linear(8, 2))


@pytest.fixture(scope="module")
def network():
    return verified(trace(make(), torch.randn(2, 5, 3)))


def plan_for(network):
    kept = {group.name: tuple(range(0, group.size, 2)) for group in network.groups}
    return PruningPlan(kept, tuple(block.name for block in network.blocks[:1]))


def test_a_recipe_does_what_its_plan_does_without_running_the_model(network, monkeypatch):
    plan = plan_for(network)
    recipe = Recipe.of(network, plan)
    wanted = Surgeon(network).cut(plan).eval()
    with monkeypatch.context() as patched:
        patched.setattr(Attention, "forward", None)
        fresh = make()
        got = recipe.apply(fresh).eval()
    got.load_state_dict(wanted.state_dict())
    x = torch.randn(2, 5, 3)

    assert {type(block) for block in got[1:2]} == {type(block) for block in wanted[1:2]}
    assert torch.equal(got(x), wanted(x))
    assert fresh[1].attention.heads == 4
    assert fresh[1].attention.qkv.weight.shape == (24, 8)


def test_tensors_that_are_cut_alike_share_a_cut(network):
    residual = next(g for g in network.groups if g.name == "0")
    recipe = Recipe.of(network, PruningPlan({"0": (1, 2, 5)}))

    (cut,) = recipe.cuts
    assert (cut.size, cut.kept) == (8, (1, 2, 5))
    assert set(cut.places) == {(member.path, member.dim) for member in residual.members}
    assert recipe.attributes == {}


def test_nothing_to_cut_gives_an_equal_copy(network):
    recipe = Recipe.of(network, PruningPlan({}))
    model = make().eval()
    x = torch.randn(2, 5, 3)

    assert recipe == Recipe((), ())
    assert torch.equal(recipe.apply(model)(x), model(x))


def test_a_plan_that_does_not_fit_is_refused(network):
    with pytest.raises(PruningError, match="group 'nowhere'"):
        Recipe.of(network, PruningPlan({"nowhere": (0,)}))


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"cuts": (Cut(4, (0,), (("0.weight", 0),)),)}, "dimension 0 of 0.weight with 4 positions"),
        ({"cuts": (Cut(8, (0,), (("9.weight", 0),)),)}, "dimension 0 of 9.weight with 8 positions"),
        ({"cuts": (Cut(8, (0,), (("0.weight", 2),)),)}, "dimension 2 of 0.weight with 8 positions"),
        ({"dropped": ("1.mixer",)}, "module '1.mixer'"),
        ({"guards": {"1.mixer": ()}}, "module '1.mixer'"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(network, change, missing):
    recipe = dataclasses.replace(Recipe.of(network, plan_for(network)), **change)

    with pytest.raises(PruningError, match=f"this architecture lacks {missing}"):
        recipe.apply(make())
