"""Cutting equals masking, shares nothing, and mends what mirrors a width."""

from __future__ import annotations

import cloudpickle
import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.network.network import Network
from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon, prune, replay


class _Net(nn.Module):
    """Plain, depthwise, grouped and transposed convolutions, norms, a residual and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8))
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.block = nn.ModuleDict({"body": nn.Conv2d(6, 6, 3, padding=1)})
        self.head = nn.Linear(6 * 64, 3)
        self.settings = {"widths": [8, 16]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.grouped(self.depthwise(self.stem(x))))
        x = torch.relu(x + self.block["body"](x))
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    model = _Net().eval()
    with torch.no_grad():
        model.stem[1].running_mean.uniform_(-0.5, 0.5)
        model.stem[1].running_var.uniform_(0.5, 2)
    return trace(model, (torch.randn(2, 3, 4, 4),))


def _plan(network: Network) -> PruningPlan:
    return PruningPlan({g.name: tuple(range(0, g.size, 2)) for g in network.groups})


def test_groups_are_those_expected(network: Network) -> None:
    sizes = {group.name: group.size for group in network.groups}
    assert sizes == {"stem.0": 2, "grouped": 3, "block.body": 6}


@pytest.mark.parametrize("only", [None, "stem.0", "grouped", "block.body"])
def test_cutting_equals_masking(network: Network, only: str | None) -> None:
    plan = _plan(network)
    if only is not None:
        plan = PruningPlan({only: plan.kept[only]})
    surgeon = Surgeon(network)
    x = torch.randn(5, 3, 4, 4)
    cut, masked = surgeon.cut(plan)(x), surgeon.mask(plan)(x)
    assert not torch.allclose(masked, network.model(x), rtol=1e-3)
    torch.testing.assert_close(cut, masked, rtol=1e-4, atol=1e-6)


def test_nothing_writable_is_shared_and_the_original_is_untouched(network: Network) -> None:
    model = network.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune(network, PruningPlan({"block.body": (0, 2)}))
    with torch.no_grad():
        for tensor in [*pruned.parameters(), *pruned.buffers()]:
            tensor.fill_(7)
    pruned.settings["widths"].append(1)
    pruned.stem[0].register_forward_hook(lambda *_: None)
    assert model.settings == {"widths": [8, 16]}
    assert not model.stem[0]._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_width_attributes_follow(network: Network) -> None:
    pruned = prune(network, _plan(network))
    assert (pruned.stem[0].out_channels, pruned.stem[1].num_features) == (4, 4)
    assert pruned.stem[2].num_parameters == 4
    depthwise = pruned.depthwise
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (4, 4, 8)
    grouped = pruned.grouped
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (4, 8, 8)
    assert (pruned.up.in_channels, pruned.up.out_channels) == (8, 3)
    assert (pruned.head.in_features, pruned.head.out_features) == (3 * 64, 3)


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    model[2].weight = model[1].weight
    network = trace(model, (torch.randn(3, 4),))
    (group,) = network.groups
    pruned = prune(network, PruningPlan({group.name: (0, 1, 4)}))
    assert pruned[2].weight is pruned[1].weight
    assert pruned[1].weight.shape == (3, 3)


def test_a_dropped_block_becomes_the_identity() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(), nn.Conv2d(4, 2, 1))
    x = torch.randn(1, 3, 5, 5)
    network = trace(model, (x,))
    pruned = prune(network, PruningPlan({}, ("1",)))
    assert isinstance(pruned[1], nn.Identity)
    torch.testing.assert_close(pruned(x), model[2](model[0](x)))


def test_replay_on_a_fresh_architecture_gives_the_same_shapes(network: Network) -> None:
    plan = _plan(network)
    again = PruningPlan.from_json(plan.to_json())
    fresh = replay(_Net(), network.inputs, again)
    fresh.load_state_dict(prune(network, plan).state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(fresh.eval()(x), prune(network, plan)(x))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan({"nobody": (0,)}), "group 'nobody'"),
        (PruningPlan({}, ("nobody",)), "block 'nobody'"),
        (PruningPlan({"block.body": ()}), "at least 1"),
        (PruningPlan({"block.body": (0, 6)}), "below 6"),
        (PruningPlan({"block.body": (2, 1)}), "sorted"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    network: Network, plan: PruningPlan, message: str
) -> None:
    with pytest.raises(PruningError, match=message):
        prune(network, plan)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kept": []},
        {"kept": {"a": [1.5]}},
        {"kept": {"a": [True]}},
        {"kept": {}, "dropped": "a"},
    ],
)
def test_a_malformed_plan_file_is_refused(data: dict) -> None:
    with pytest.raises(PruningError, match="a pruning plan is"):
        PruningPlan.from_json(data)


def test_a_surgeon_that_has_cut_still_cuts_in_another_process(network: Network) -> None:
    surgeon, plan = Surgeon(network), _plan(network)
    pruned = surgeon.cut(plan)
    again = cloudpickle.loads(cloudpickle.dumps(surgeon)).cut(plan)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(again(x), pruned(x))


def _changed(model: nn.Module) -> nn.Module:
    """Give a network other weights, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_a_grown_network_computes_what_the_pruned_one_does(network: Network) -> None:
    surgeon, plan = Surgeon(network), _plan(network)
    pruned = _changed(surgeon.cut(plan))
    x = torch.randn(5, 3, 4, 4)
    grown = surgeon.grow(plan, pruned)
    assert {k: v.shape for k, v in grown.state_dict().items()} == {
        k: v.shape for k, v in network.model.state_dict().items()
    }
    torch.testing.assert_close(grown(x), pruned(x), rtol=1e-4, atol=1e-6)

    # cut again at the same units it is the pruned network; narrower, it keeps its weights
    again = surgeon.cut(plan, replaced=dict([*grown.named_parameters(), *grown.named_buffers()]))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pruned.parameters(),
                                                 strict=True))  # fmt: skip


def test_a_grown_network_passes_dropped_blocks_by() -> None:
    inputs = torch.randn(3, 3, 8, 8)
    traced = trace(SmallResNet(14, widths=(4, 8, 8)).eval(), (inputs,))
    block = traced.blocks[0].name
    plan = PruningPlan({g.name: tuple(range(1, g.size)) for g in traced.groups}, (block,))
    surgeon = Surgeon(traced)
    pruned = _changed(surgeon.cut(plan))
    grown = surgeon.grow(plan, pruned)
    torch.testing.assert_close(grown(inputs), pruned(inputs), rtol=1e-4, atol=1e-6)
    assert not any(parameter.any() for parameter in grown.get_submodule(block).parameters())
