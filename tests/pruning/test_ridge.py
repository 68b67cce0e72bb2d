from __future__ import annotations

import pytest
import torch

from autoprune.pruning.ridge import NormalEquations


@pytest.mark.parametrize("centred", [True, False])
def test_the_ridge_pulls_towards_the_given_weights(centred):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 50, 4, generator=generator, dtype=torch.float64) + 1
    wishes = torch.randn(1, 50, 3, generator=generator, dtype=torch.float64) + 2
    before = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    sums = NormalEquations.of(rows, wishes, centred=centred)
    found, intercept = sums.solution(before, ridge=0.5)
    flat = rows[0] - rows[0].mean(0) * centred
    pull = 0.5 * float(flat.square().sum() / 4)
    system = torch.cat([flat, pull**0.5 * torch.eye(4).double()])
    goal = wishes[0] - wishes[0].mean(0) * centred
    wanted = torch.cat([goal, pull**0.5 * before[0].T])
    torch.testing.assert_close(found[0], torch.linalg.lstsq(system, wanted).solution.T)
    mean = wishes[0].mean(0) - found[0] @ rows[0].mean(0) if centred else torch.zeros(3).double()
    torch.testing.assert_close(intercept[0], mean)
    strong, _ = sums.solution(before, ridge=1e9)
    torch.testing.assert_close(strong, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_sums_of_pieces_are_those_of_all_rows(centred):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64) + 3
    wishes = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64) - 1
    pieces = [
        NormalEquations.of(rows[:, part], wishes[:, part], centred=centred)
        for part in (slice(0, 13), slice(13, 20), slice(20, 50))
    ]
    pooled = pieces[0].pooled(pieces[1]).pooled(pieces[2])
    whole = NormalEquations.of(rows, wishes, centred=centred)
    for field in ("rows", "mean", "goal", "square", "cross"):
        torch.testing.assert_close(getattr(pooled, field), getattr(whole, field))
    assert pooled.smaller().square.dtype == torch.float32
