from __future__ import annotations

import pytest
import torch

from autoprune.pruning.decisions import Decisions, agree, grounds


def _pass(function, x, given=()):
    decisions = Decisions(given)
    with torch.no_grad(), decisions:
        return function(x), decisions.made


RANKED = {
    "topk": lambda x: x.topk(2, dim=1),
    "topk last": lambda x: x.topk(2),
    "sort": lambda x: x.sort(1, descending=True),
    "stable sort": lambda x: x.sort(dim=0, stable=True),
    "max": lambda x: x.max(1),
    "max kept": lambda x: x.max(dim=0, keepdim=True),
    "kthvalue": lambda x: x.kthvalue(2, 1),
    "median": lambda x: x.median(0),
    "cummax": lambda x: x.cummax(1),
}


@pytest.mark.parametrize("name", RANKED)
def test_places_are_given_and_values_are_read_there(name):
    one = torch.tensor([[3.0, 1.0, 2.0], [4.0, 6.0, 5.0]])
    other = torch.tensor([[5.0, 7.0, 2.5], [4.5, 6.5, 9.0]])
    (values, places), made = _pass(RANKED[name], one)
    (own_values, _), own = _pass(RANKED[name], other)
    assert not agree(made, own)
    (followed, same_places), again = _pass(RANKED[name], other, made)
    assert torch.equal(same_places, places)
    assert followed.shape == values.shape == own_values.shape
    assert followed.dtype == values.dtype
    assert agree(made, again)
    flat = [v for v in followed.flatten().tolist() if v not in other.flatten().tolist()]
    assert not flat
    assert torch.equal(_pass(RANKED[name], one, made)[0][0], values)


def _branches(x: torch.Tensor) -> torch.Tensor:
    chosen = (x > 0.5).nonzero()[:, 0]
    y = x[chosen] * 2
    if x.sum() > 2:
        y = y + 100
    return y * float(x.max())


def test_what_depends_on_values_goes_the_given_way():
    high, low = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.1, 0.6, 0.4])
    (first, made), (second, _) = _pass(_branches, high), _pass(_branches, low)
    assert len(first) == 3
    assert len(second) == 1
    followed, again = _pass(_branches, low, made)
    torch.testing.assert_close(followed, (low * 2 + 100) * 0.9)
    assert agree(made, again)
    assert all(torch.equal(a, low) or torch.equal(a, low.sum()) or torch.equal(a, low.max())
               for a, _ in grounds(again, made))  # fmt: skip


def test_questions_about_another_number_of_channels_are_decided_by_oneself():
    def activation(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    wide, narrow = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-4.0, 5.0])
    _, made = _pass(activation, wide)
    result, own = _pass(activation, narrow, made)
    assert torch.equal(result, torch.tensor([-0.4, 5.0]))
    assert agree(made, own)
    assert list(grounds(made, own)) == []


def test_a_pass_that_asks_other_questions_finds_the_ones_it_shares():
    _, made = _pass(lambda x: ((x > 1).any(), (x < 1).sum()), torch.tensor([2.0, 0.0]))
    assert [decision.name for decision in made] == ["gt", "lt"]
    (less,), _ = _pass(lambda x: ((x < 1),), torch.tensor([5.0, 5.0]), made)
    assert less.tolist() == [False, True]
    (equal,), _ = _pass(lambda x: ((x == 1),), torch.tensor([5.0, 5.0]), made)
    assert equal.tolist() == [False, False]


def test_later_changes_in_place_do_not_reach_what_was_decided():
    def counts(x: torch.Tensor) -> torch.Tensor:
        numbers = x.argmax(0)
        return numbers.add_(1)

    x = torch.tensor([0.0, 3.0, 1.0])
    first, made = _pass(counts, x)
    assert int(made[0].result) == 1
    again, _ = _pass(counts, x.flip(0), made)
    assert int(first) == int(again) == 2
    third, _ = _pass(counts, x, made)
    assert int(third) == 2
