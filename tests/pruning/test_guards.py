import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.network.trace import trace
from autoprune.pruning.guards import Guarded
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon, replay
from autoprune.pruning.verify import verified


class ComputedAttention(nn.Module):
    """Self-attention whose code computes every width from the input's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attention = (qkv[0] @ qkv[1].transpose(-2, -1)).softmax(-1)
        return self.proj((attention @ qkv[2]).transpose(1, 2).reshape(b, n, c))


class Halves(nn.Module):
    """Takes a projection apart by literal numbers, unequal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 24)
        self.leave = nn.Linear(8, 4)
        self.other = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        return self.leave(y[..., :8]) + self.other(y[..., 8:24].relu())


class Sections(Halves):
    """The same with a split."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.enter(x).split([8, 16], dim=-1)
        return self.leave(first) + self.other(second.relu())


class Merged(nn.Module):
    """Merges batch and heads into one dimension, as PyTorch's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(6, 32), nn.Linear(6, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, b, _ = x.shape
        q = self.q(x).view(n, b * 4, 8).transpose(0, 1)
        v = self.v(x).view(n, b * 4, 8).transpose(0, 1)
        y = (q @ q.transpose(1, 2)).softmax(-1) @ v
        return self.out(y.transpose(0, 1).reshape(n, b, 32))


def transformer_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)


class Cross(nn.Module):
    """PyTorch's attention over another sequence, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.memory = nn.Linear(6, 32), nn.Linear(6, 24)
        self.attention = nn.MultiheadAttention(32, 4, kdim=24, vdim=24, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory(x)
        hidden = torch.zeros(x.shape[:2], dtype=torch.bool)
        hidden[:, -1] = True
        y, _ = self.attention(self.enter(x), memory, memory, key_padding_mask=hidden)
        return self.out(y)


CASES = {
    "computed": (lambda: nn.Sequential(ComputedAttention(32, 4), nn.Linear(32, 4)), (2, 5, 32)),
    "slices": (Halves, (2, 6)),
    "sections": (Sections, (2, 6)),
    "merged": (Merged, (5, 1, 6)),
    "torch": (transformer_layer, (2, 5, 32)),
    "cross": (Cross, (2, 5, 6)),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    make, shape = CASES[request.param]
    x = torch.randn(shape)
    return make, verified(trace(make().eval(), x)), x


def plan_of(network, seed=0):
    rng = np.random.default_rng(seed)
    return PruningPlan(
        {
            g.name: tuple(np.sort(rng.choice(g.size, g.size // 2 | 1, replace=False)).tolist())
            for g in network.groups
        }
    )


def test_heads_are_found_and_cut(case):
    _, network, x = case
    surgeon = Surgeon(network)
    exact = {g.name for g in network.groups if not g.mixed}
    assert exact
    plan = plan_of(network)
    plan = PruningPlan({name: units for name, units in plan.kept.items() if name in exact})
    pruned = surgeon.cut(plan)
    assert any(isinstance(module, Guarded) for module in pruned.modules())
    with torch.no_grad():
        torch.testing.assert_close(pruned.eval()(x), surgeon.mask(plan).eval()(x))


def test_the_same_network_comes_out_of_a_replay(case):
    make, network, x = case
    surgeon = Surgeon(network)
    plan = surgeon.complete(plan_of(network))
    pruned = surgeon.cut(plan).eval()
    again = replay(make().eval(), x, PruningPlan.from_json(plan.to_json())).eval()
    again.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(pruned(x), again(x))


def test_copies_and_gradients(case):
    _, network, x = case
    pruned = Surgeon(network).cut(plan_of(network)).eval()
    twin = copy.deepcopy(pruned)
    twin(x).square().sum().backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert all(p.grad is None for p in pruned.parameters())
    torch.testing.assert_close(twin(x), pruned(x))


def test_exports(case):
    _, network, x = case
    pruned = Surgeon(network).cut(plan_of(network)).eval()
    program = torch.export.export(pruned, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), pruned(x))


def test_an_untouched_module_stays_what_it_is(case):
    _, network, _ = case
    dense = Surgeon(network).cut(PruningPlan({}))
    assert not any(isinstance(module, Guarded) for module in dense.modules())


def test_heads_merged_with_the_batch_follow_another_batch():
    torch.manual_seed(0)
    network = verified(trace(Merged().eval(), torch.randn(5, 1, 6)))
    (group,) = [g for g in network.groups if g.name == "q"]
    surgeon = Surgeon(network)
    plan = PruningPlan({group.name: (0, 2, 3)})
    x = torch.randn(5, 7, 6)
    with torch.no_grad():
        torch.testing.assert_close(surgeon.cut(plan).eval()(x), surgeon.mask(plan).eval()(x))


def test_a_guard_leaves_alone_what_it_does_not_know():
    network = verified(trace(Halves().eval(), torch.randn(2, 6)))
    pruned = Surgeon(network).cut(plan_of(network)).eval()
    del pruned.__dict__["_reshape_guard"]
    pruned.__class__ = Halves
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pruned(torch.randn(2, 6))


class Encoder(nn.Module):
    """PyTorch's encoder, which in eval mode would skip padded positions by a fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=hidden)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # its own, when not cut
def test_pytorchs_encoder_runs_with_two_of_four_heads_and_a_mask():
    torch.manual_seed(0)
    x, hidden = torch.randn(3, 5, 32), torch.zeros(3, 5, dtype=torch.bool)
    hidden[1:, 3:] = True
    network = verified(trace(Encoder().eval(), (x, hidden)))
    heads = {g.name: (1, 2) for g in network.groups if g.kind == "head"}
    assert len(heads) == 2
    surgeon = Surgeon(network)
    pruned, masked = surgeon.cut(PruningPlan(heads)).eval(), surgeon.mask(PruningPlan(heads)).eval()
    with torch.no_grad():
        torch.testing.assert_close(pruned(x, hidden), masked(x, hidden), rtol=1e-4, atol=1e-5)
