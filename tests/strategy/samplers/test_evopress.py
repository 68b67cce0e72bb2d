import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.levels import plateau_levels
from autoprune.strategy.registry import SAMPLERS
from autoprune.testing.samplers import (
    MadeUpLatency,
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["evopress"]


@pytest.mark.parametrize("padding", [1, 8])
def test_a_switch_is_one_level_up_and_as_many_down_as_that_costs(padding):
    problem = made_up_problem(5, 64, multiple=4, droppable=False, latency=MadeUpLatency(padding))
    grid = plateau_levels(problem)
    sampler = SAMPLERS["evopress"](problem, seed=0)
    widths, keep = np.full(6, 32), np.ones(5, bool)
    limit = float(problem.predict(widths[None], keep[None])[0])
    for seed in range(30):
        new, kept = sampler.switched(widths, keep, limit, np.random.default_rng(seed))
        assert kept.all()
        up, down = np.flatnonzero(new > 32), np.flatnonzero(new < 32)
        assert len(up) == len(down) == 1
        group, other = int(up[0]), int(down[0])
        assert new[group] == min(w for w in grid.widths[group] if w > 32)
        # The widest level below that brings the latency back, else the narrowest.
        below = sorted({w for w in grid.widths[other].tolist() if w < 32}, reverse=True)
        fits = []
        for width in below:
            row = new.copy()
            row[other] = width
            if problem.predict(row[None], keep[None])[0] <= limit:
                fits.append(width)
        assert new[other] == (fits[0] if fits else below[-1])


def test_blocks_are_exchanged_too():
    problem = made_up_problem(4, 32, multiple=4)
    sampler = SAMPLERS["evopress"](problem, seed=0)
    widths, keep = np.full(5, 32), np.array([True, False, True, True])
    limit = float(problem.predict(widths[None], keep[None])[0])
    found = set()
    for seed in range(40):
        _, kept = sampler.switched(widths, keep, limit, np.random.default_rng(seed))
        found.add(tuple(kept.tolist()))
    # No active group can be wider, so the dropped block comes back; blocks or groups pay.
    assert all(kept[1] for kept in found)
    assert {kept.count(False) for kept in found} == {0, 1}


def test_it_starts_uniform_and_stays_with_the_best():
    problem = made_up_problem(5, 64, budget=0.5, multiple=1, droppable=False)
    with quiet_optuna():
        study = new_study(SAMPLERS["evopress"](problem, seed=0, max_switches=1))
        ratios = np.array([c.ratios for c in run_trials(study, problem, 20)])
    losses = np.array([trial.values[0] for trial in study.trials])
    assert np.ptp(ratios[0]) <= 4 / 64
    for number in range(1, 20):
        parent = ratios[np.argmin(losses[:number])]
        # Two groups are switched; the others only follow the filling and scaling.
        moved = np.sort(np.abs(ratios[number] - parent))
        assert moved[-3] <= 4 / 64
    assert losses.min() < losses[0]


def test_numbers_must_make_sense():
    with pytest.raises(SettingsError, match="max_switches and neighbours >= 1, got 0 and 8"):
        SAMPLERS["evopress"](made_up_problem(), seed=0, max_switches=0)
