import pytest
import torch

from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.testing.networks import tiny
from autoprune.tuning.features import Feature, block_features, feature_loss, noted

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trace(SmallResNet(14, widths=(8, 16, 32)).eval(), (IMAGES,))


def outputs(model, names):
    with torch.no_grad(), noted(model, names) as found:
        model(IMAGES)
    return found


def test_blocks_are_compared_at_the_channels_that_stay(network):
    surgeon = Surgeon(network)
    plan = PruningPlan({g.name: tuple(range(1, g.size, 2)) for g in network.groups})
    pruned, masked = surgeon.cut(plan), surgeon.mask(plan)

    features = block_features(network, plan, pruned)

    assert [f.module for f in features] == [block.name for block in network.blocks]
    assert any(f.kept is not None for f in features)
    names = [f.module for f in features]
    # a network whose other channels are zero computes the same at those that stay
    wide, narrow = outputs(masked, names), outputs(pruned, names)
    for feature in features:
        torch.testing.assert_close(feature.of_teacher(wide[feature.module]), narrow[feature.module])
    assert float(feature_loss(features, narrow, wide)) < 1e-8


def test_stream_and_inside_of_a_block_are_told_apart(network):
    """Both are 8 wide and keep 4, but not the same ones."""
    block = network.blocks[0]
    (inner,) = block.groups
    stream = next(g.name for g in network.groups if g.name == "conv1")
    plan = PruningPlan({inner: (0, 1, 2, 3), stream: (2, 4, 6, 7)})
    feature = block_features(network, plan, Surgeon(network).cut(plan))[0]
    assert feature == Feature(block.name, 1, (2, 4, 6, 7))


def test_dropped_blocks_are_left_out(network):
    gone = network.blocks[0].name
    plan = PruningPlan({}, dropped=(gone,))
    features = block_features(network, plan, Surgeon(network).cut(plan))
    assert [f.module for f in features] == [b.name for b in network.blocks if b.name != gone]
    assert all(f.kept is None for f in features)


def test_network_without_blocks_has_none():
    network = trace(tiny("chain").model, tiny("chain").inputs)
    assert block_features(network, PruningPlan({}), network.model) == ()


def test_loss_is_relative_to_the_variance_of_the_teacher():
    torch.manual_seed(0)
    aims = {"a": torch.randn(2, 5, 4), "b": 100 * torch.randn(3, 2)}
    own = {"a": torch.randn(2, 2, 4), "b": 100 * torch.randn(3, 2)}
    features = (Feature("a", 1, (1, 3)), Feature("b"))
    picked = aims["a"][:, [1, 3]]
    expected = [
        ((own["a"] - picked) ** 2).sum() / 16 / picked.var(),
        ((own["b"] - aims["b"]) ** 2).sum() / 6 / aims["b"].var(),
    ]
    found = feature_loss(features, own, aims)
    torch.testing.assert_close(found, sum(expected) / 2)
