import functools

import numpy as np
import pytest

from autoprune.errors import SettingsError
from autoprune.strategy.population import evaluated
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.variation import linkage
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
        return functools.partial(SAMPLERS["metapruning"], startup_trials=4, parents=3)


def started(problem, **options):
    sampler = SAMPLERS["metapruning"](problem, seed=0, startup_trials=8, **options)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 8)
    return sampler, evaluated(problem, study)


def test_mutants_are_one_of_the_best_but_for_a_few_genes():
    problem = made_up_problem(12, 64, budget=0.5, multiple=1, droppable=False)
    sampler, population = started(problem, parents=2, mutation_share=1.0)
    parents = population.ratios[np.argsort(population.loss)[:2]]
    changed = []
    for seed in range(60):
        child = np.array(sampler.child(population, np.random.default_rng(seed)).ratios)
        changed.append((child != parents).sum(axis=1).min())
    # 780 genes with 0.1 each: 1.3 a child, standard deviation of the mean 0.14.
    assert 0.6 < np.mean(changed) < 2.0


def test_other_children_are_crossed_from_two_of_the_best():
    problem = made_up_problem(12, 64, budget=0.5, multiple=1)
    sampler, population = started(problem, parents=2, mutation_share=0.0)
    best = np.argsort(population.loss)[:2]
    both = np.concatenate([population.dropped[best], population.ratios[best]], axis=1)
    owner = linkage(problem.space)
    for seed in range(20):
        child = sampler.child(population, np.random.default_rng(seed))
        genes = np.concatenate([np.array(child.dropped, float), child.ratios])
        same = genes == both
        assert same.any(axis=0).all()
        for group, place in enumerate(owner):
            if place < 12:
                # A block and its group have a parent in common.
                assert (same[:, place] & same[:, 12 + group]).any()
    assert not (np.array(child.ratios) == population.ratios[best]).all(axis=1).any()


@pytest.mark.slow
def test_it_finds_what_random_candidates_do_not():
    problem = made_up_problem(6, 32, budget=0.5, droppable=False)

    def best(name, seed, **options):
        with quiet_optuna():
            study = new_study(SAMPLERS[name](problem, seed=seed, **options))
            run_trials(study, problem, 50)
        return min(trial.values[0] for trial in study.trials)

    gains = [best("eagleeye", seed) - best("metapruning", seed) for seed in range(2)]
    assert np.mean(gains) > 0.0


def test_numbers_must_make_sense():
    with pytest.raises(SettingsError, match="startup_trials >= 1 and parents >= 2, got 0 and 1"):
        SAMPLERS["metapruning"](made_up_problem(), seed=0, startup_trials=0, parents=1)
