from __future__ import annotations

import numpy as np
import pytest
import torch

from autoprune.pruning.elimination import RIDGE, Problem, eliminate, regularised


def _problem(rows, weight):
    gram = rows.T @ rows / len(rows)
    energy = float(((weight @ gram) * weight).sum())
    return Problem(gram, weight.T @ weight, energy)


def _error(rows, weight, gone):
    """Return the mean square that least squares leaves over, by lstsq."""
    stay = [c for c in range(rows.shape[1]) if c not in gone]
    wanted = rows @ weight.T
    solved = torch.linalg.lstsq(rows[:, stay], wanted).solution if stay else wanted[:0]
    left = wanted - (rows[:, stay] @ solved if stay else 0)
    return float(left.square().sum() / wanted.square().sum())


@pytest.mark.parametrize("size", [1, 3])
def test_the_curve_is_the_true_error_at_every_width(size):
    generator = torch.Generator().manual_seed(0)
    units, channels = 6, 6 * size
    readers = []
    for outputs in (4, 9):
        mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
        rows = torch.randn(300, channels, generator=generator, dtype=torch.float64) @ mixing
        weight = torch.randn(outputs, channels, generator=generator, dtype=torch.float64)
        readers.append((rows, weight))
    found = eliminate([_problem(*reader) for reader in readers], units, ridge=0.0)
    assert sorted(found.order) == list(range(units))
    assert found.damage[0] == 0
    assert (np.diff(found.damage) > 0).all()
    for removed in range(units + 1):
        gone = [unit * size + place for unit in found.order[:removed] for place in range(size)]
        true = sum(_error(*reader, gone) for reader in readers)
        assert found.damage[removed] == pytest.approx(true, rel=1e-6, abs=1e-9), removed


def test_every_step_takes_the_cheapest():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = eliminate([_problem(rows, weight)], 5, ridge=0.0)
    gone: list[int] = []
    for unit in found.order:
        costs = {u: _error(rows, weight, [*gone, u]) for u in range(5) if u not in gone}
        assert min(costs, key=costs.get) == unit
        gone.append(unit)


def test_what_others_can_replace_goes_first_and_costs_nothing():
    """Channel 2 is a sum of others and the largest by far; magnitude would keep it."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    rows[:, 2] = 10 * (rows[:, 0] + rows[:, 1])
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = eliminate([_problem(rows, weight)], 5, ridge=1e-9)
    assert found.order[0] in (0, 1, 2)
    assert found.damage[1] < 1e-6
    assert found.damage[2] > 1e-3


def test_the_ridge_is_a_share_of_the_mean_and_zeros_stay_invertible():
    gram = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert torch.allclose(regularised(gram, 0.5), torch.diag(torch.tensor([2.0, 4.0])).double())
    assert torch.linalg.cholesky(regularised(torch.zeros(3, 3).double(), 0.01)).isfinite().all()


def test_numbers_that_are_not_finite_come_back_as_such():
    nan = torch.full((3, 3), torch.nan, dtype=torch.float64)
    assert not np.isfinite(eliminate([Problem(nan, nan, 1.0)], 3).damage[1:]).any()


def test_the_accumulated_cost_does_not_drift_over_many_removals():
    """96 correlated channels, in float64: within 2 % of the trace formula at every level."""
    generator = torch.Generator().manual_seed(3)
    channels = 96
    scales = torch.logspace(0, -3, channels, dtype=torch.float64)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    rows = torch.randn(400, channels, generator=generator, dtype=torch.float64) * scales @ mixing
    weight = torch.randn(10, channels, generator=generator, dtype=torch.float64)
    problem = _problem(rows, weight)
    found = eliminate([problem], channels)
    assert (np.diff(found.damage) >= 0).all()
    gram = regularised(problem.gram, RIDGE)
    for removed in range(8, channels, 8):
        gone, stay = found.order[:removed].tolist(), found.order[removed:].tolist()
        schur = gram[gone][:, gone] - gram[gone][:, stay] @ torch.linalg.solve(
            gram[stay][:, stay], gram[stay][:, gone]
        )
        error = float((weight[:, gone] @ schur @ weight[:, gone].T).trace()) / problem.energy
        assert found.damage[removed] == pytest.approx(error, rel=0.02)
