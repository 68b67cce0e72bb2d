"""Experts picked by a router: what of them can be cut, however the choice is carried out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.errors import PruningError
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified


class _Experts(nn.Module):
    """A router and a list of perceptrons, the hand-written form."""

    def __init__(self, form: str = "added", count: int = 4, top_k: int = 2) -> None:
        super().__init__()
        self.form, self.top_k = form, top_k
        self.norm, self.router = nn.LayerNorm(12), nn.Linear(12, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).reshape(-1, x.shape[-1])
        shares, picked = torch.topk(self.router(rows).softmax(-1), self.top_k, dim=-1)
        return x + getattr(self, self.form)(rows, shares, picked).reshape(x.shape)

    def added(self, rows: Tensor, shares: Tensor, picked: Tensor) -> Tensor:
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(picked == number)
            out.index_add_(0, token, shares[token, place, None] * expert(rows[token]))
        return out

    def put(self, rows: Tensor, shares: Tensor, picked: Tensor) -> Tensor:
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(picked == number)
            out[token] += shares[token, place, None] * expert(rows[token])
        return out

    def masked(self, rows: Tensor, shares: Tensor, picked: Tensor) -> Tensor:
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            own = picked == number
            mask = own.any(-1)
            if mask.any():
                out[mask] += expert(rows[mask]) * (shares * own).sum(-1)[mask][:, None]
        return out

    def dense(self, rows: Tensor, shares: Tensor, picked: Tensor) -> Tensor:
        weights = torch.zeros(len(rows), len(self.experts)).scatter_(1, picked, shares)
        return sum(e(rows) * weights[:, i : i + 1] for i, e in enumerate(self.experts))

    def listed(self, rows: Tensor, shares: Tensor, picked: Tensor) -> Tensor:
        """Read the numbers where no operator shows it."""
        out = [
            sum(
                share * self.experts[number](row)
                for share, number in zip(own, numbers, strict=True)
            )
            for row, own, numbers in zip(rows, shares, picked.tolist(), strict=True)
        ]
        return torch.stack(out)


def _model(experts: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Embedding(30, 12), experts, nn.Linear(12, 5)).eval()


IDS = torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["added", "put", "masked", "dense", "listed"])
def test_experts_in_a_list_can_be_narrowed_each_by_itself(form: str) -> None:
    torch.manual_seed(0)
    network = verified(trace(_model(_Experts(form)), IDS))
    assert not network.unsupported
    assert Counter((g.size, g.mixed) for g in network.groups) == {(20, False): 4, (12, True): 1}
    assert "by number" in network.frozen["1.router"]

    inner = [group.name for group in network.groups if group.size == 20]
    plan = PruningPlan({name: tuple(range(i + 1)) for i, name in enumerate(inner)})
    surgeon = Surgeon(network)
    torch.testing.assert_close(
        surgeon.cut(plan)(IDS), surgeon.mask(plan)(IDS), rtol=1e-4, atol=1e-5
    )
    stream = next(group.name for group in network.groups if group.size == 12)
    narrow = surgeon.cut(PruningPlan({stream: (0, 5, 7)}))
    assert all(expert[0].in_features == 3 for expert in narrow[1].experts)


def test_an_expert_that_no_token_reaches_while_tracing_leaves_the_list_whole() -> None:
    """Its input would keep the old width and fail once a token reaches it."""
    network = verified(trace(_model(_Experts("masked", count=6, top_k=1)), IDS[:1, :3]))
    assert network.groups == ()
    assert network.frozen["1.experts.0.0"] == "no token reached some of the experts; pass more"


class _Stacked(nn.Module):
    """Experts in two stacked tensors; tokens are sorted by their expert."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.router = 6, nn.Linear(16, 6, bias=False)
        self.up = nn.Parameter(torch.randn(6, 16, 24))
        self.down = nn.Parameter(torch.randn(6, 24, 16))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        share, picked = self.router(rows).sigmoid().topk(1, dim=-1)
        order = picked[:, 0].argsort()
        sizes = torch.histc(picked.float(), bins=self.count, min=0, max=self.count - 1)
        ends = sizes.cumsum(0, dtype=torch.int32)
        hidden = F.gelu(F.grouped_mm(rows[order], self.up, offs=ends))
        out = torch.zeros_like(rows)
        out[order] = F.grouped_mm(hidden, self.down, offs=ends)
        return (out * share).reshape(x.shape)


def test_stacked_experts_go_with_their_row_of_the_router() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 16), _Stacked(), nn.Linear(16, 5)).eval()
    network = verified(trace(model, IDS))
    groups = {group.name: group for group in network.groups}
    experts = groups["1.router"]
    assert (experts.kind, experts.size, experts.least, experts.mixed) == ("expert", 6, 1, True)
    assert {(m.path, m.dim) for m in experts.members} == {
        ("1.router.weight", 0),
        ("1.up", 0),
        ("1.down", 0),
    }
    assert [m.attribute for m in experts.mirrors] == ["1.count"]
    # The kernel reads rows of whole 16 bytes: four numbers in single precision.
    assert (groups["1.up"].size, groups["1.up"].multiple) == (24, 4)

    surgeon, plan = Surgeon(network), PruningPlan({"1.router": (0, 3, 4), "1.up": tuple(range(8))})
    got = surgeon.cut(plan)(IDS)
    with torch.no_grad():  # a share of 0 at most: the router never picks the others
        never = surgeon.mask(PruningPlan({"1.up": tuple(range(8))}))
        never[1].router.register_forward_hook(_without([1, 2, 5]))
    torch.testing.assert_close(got, never(IDS), rtol=1e-4, atol=1e-5)
    with pytest.raises(PruningError, match="at least 4 and a multiple of 4"):
        surgeon.cut(PruningPlan({"1.up": tuple(range(6))}))


def _without(gone: list[int]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: object, logits: Tensor) -> Tensor:
        return logits.index_fill(1, torch.tensor(gone), -torch.inf)

    return hook


class _Named(nn.Module):
    """Returns which experts were picked."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Stacked()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), self.inner.router(x).argmax(-1)


def test_experts_whose_numbers_are_returned_keep_their_numbers() -> None:
    model = nn.Sequential(nn.Embedding(30, 16), _Named()).eval()
    network = verified(trace(model, IDS))
    assert network.frozen["1.inner.router"] == "network output"
    assert [group.name for group in network.groups] == ["1.inner.up"]
