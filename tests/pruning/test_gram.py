from __future__ import annotations

import pytest
import torch

from autoprune.pruning import gram
from autoprune.pruning.gram import measure
from autoprune.testing.networks import TINY_NETWORKS, tiny


def _seen(model, owner, batches):
    rows = []
    hook = model.get_submodule(owner).register_forward_pre_hook(
        lambda _, args: rows.append(args[0])
    )
    with torch.no_grad():
        for inputs, _ in batches:
            model(inputs)
    hook.remove()
    return torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in rows]).double()


@pytest.mark.parametrize("name", sorted(TINY_NETWORKS))
def test_equals_the_moments_of_all_inputs(name):
    case = tiny(name)
    batches = case.batches(5, 3)
    measured = measure(case.network, batches)
    for group in case.groups:
        for heard in case.heard(group, batches):
            moments = measured.moments[heard.member.path]
            rows = heard.values.transpose(1, 2).flatten(0, 1).double()
            assert moments.count == len(rows)
            parts = rows.tensor_split(heard.conv_groups, dim=1)
            for place, part in enumerate(parts):
                second = part.T @ part / len(part)
                torch.testing.assert_close(moments.mean[place], part.mean(0), rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(moments.second[place], second, rtol=1e-5, atol=1e-5)
                covariance = part.T.cov(correction=0).reshape(second.shape)
                torch.testing.assert_close(
                    moments.gram(centred=True)[place], covariance, rtol=1e-4, atol=1e-5
                )


def test_a_sample_of_many_positions_is_near_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(gram, "ROWS", 400)
    monkeypatch.setattr(gram, "ROWS_PER_CHANNEL", 1)
    case = tiny("chain", dtype=torch.float64)
    batches = case.batches(40, 40)
    first, second = (measure(case.network, batches).moments["conv2.weight"] for _ in range(2))
    assert torch.equal(first.second, second.second)
    assert first.count == 400
    rows = _seen(case.model, "conv2", batches)
    # The mean of 400 draws is off by more than 6 standard errors once in 1e8.
    error = (first.mean[0] - rows.mean(0)).abs() / (rows.std(0) / 20)
    assert error.max() < 6


def test_bfloat16_is_added_up_in_double():
    case = tiny("flatten", dtype=torch.bfloat16)
    moments = measure(case.network, case.batches(4, 4)).moments["output.weight"]
    assert moments.second.dtype == torch.float64
    rows = _seen(case.model, "output", case.batches(4, 4))
    torch.testing.assert_close(moments.second[0], rows.T @ rows / 8, rtol=1e-6, atol=1e-6)


def test_inputs_that_are_too_wide_keep_their_mean(monkeypatch):
    monkeypatch.setattr(gram, "WIDEST", 10)
    case = tiny("flatten")
    moments = measure(case.network, case.batches(4, 4)).moments
    assert moments["hidden.weight"].second is None
    assert moments["hidden.weight"].mean.shape == (1, 64)
    assert moments["output.weight"].second is not None
