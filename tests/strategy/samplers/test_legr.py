import dataclasses
import functools

import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.registry import SAMPLERS
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return functools.partial(SAMPLERS["legr"], startup_trials=4, tournament=3)


@pytest.fixture
def scored():
    """Return a problem with a score for every unit."""
    problem = made_up_problem(4, 16, multiple=1)
    rng = np.random.default_rng(5)
    scores = {dim.group: rng.gamma(2.0, size=16) for dim in problem.space.dimensions}
    return dataclasses.replace(problem, scores=scores)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_below_the_lowest_threshold_that_fits_goes(scored, seed):
    space, names = scored.space, [dim.group for dim in scored.space.dimensions]
    genes = 0.5 * np.random.default_rng(seed).normal(size=(2, 9))
    limit = 0.45 * scored.dense_ms
    maps = []
    for place in range(9):
        inside = [place] if place < 5 else [place - 4]
        values = np.concatenate([scored.scores[names[g]] for g in inside])
        base = values if place < 5 else np.array([values.max()])
        maps.append(np.exp(genes[0, place]) * base + genes[1, place] * values.std())

    def at(threshold):
        widths = [max(int((m >= threshold).sum()), 1) for m in maps[:5]]
        gone = np.array([m[0] < threshold for m in maps[5:]])
        ratios = 1.0 - np.array(widths)[None] / 16
        return space.realise(ratios, gone[None])

    for threshold in sorted(np.concatenate(maps).tolist()):
        widths, keep = at(threshold)
        if scored.predict(widths, keep)[0] <= limit:
            break
    found = SAMPLERS["legr"](scored, seed=0).ranked(genes, limit)
    assert (space.keep([found]) == keep).all()
    # What the last unit's step left of the budget is given back.
    back = space.widths([found]) - widths
    assert (back >= 0).all()
    assert scored.latency_ms([found])[0] <= limit
    assert (back > 0).sum() <= 2


def test_the_first_map_is_the_identity_and_children_change_a_few_genes(scored):
    problem = dataclasses.replace(scored, budget_ms=0.5 * scored.dense_ms)
    sampler = SAMPLERS["legr"](problem, seed=0, startup_trials=4, tournament=64, mutated=0.2)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 12)
    genes = [np.array(trial.system_attrs["legr:genes"]) for trial in study.trials]
    losses = [trial.values[0] for trial in study.trials]
    assert not genes[0].any()
    for number in range(4, 12):
        # All are in the tournament, so the best wins.
        parent = genes[int(np.argmin(losses[:number]))]
        assert (genes[number] != parent).any(axis=0).sum() == 2


def test_the_oldest_have_no_children(scored):
    problem = dataclasses.replace(scored, budget_ms=0.5 * scored.dense_ms)
    options = {"startup_trials": 4, "population_size": 3, "tournament": 3, "mutated": 0.01}
    with quiet_optuna():
        study = new_study(SAMPLERS["legr"](problem, seed=0, **options))
        # Losses rise: the first would always win.
        run_trials(study, problem, 10, loss=lambda space, c: 1.0 + len(study.trials))
    genes = [np.array(trial.system_attrs["legr:genes"]) for trial in study.trials]
    for number in range(5, 10):
        shared = [(genes[number] == other).all(axis=0).sum() for other in genes[:number]]
        assert int(np.argmax(shared)) == number - 3


def test_without_scores_units_count_by_the_square_of_the_ratio():
    problem = made_up_problem(3, 8, multiple=1)
    units = SAMPLERS["legr"](problem, seed=0)._units
    for scores in units:
        assert np.cumsum(scores) == pytest.approx((np.arange(1, 9) / 8) ** 2)


def test_numbers_must_make_sense():
    with pytest.raises(SettingsError, match=r"got 16, 64, 0, 500 and 0\.1"):
        SAMPLERS["legr"](made_up_problem(), seed=0, tournament=0)
