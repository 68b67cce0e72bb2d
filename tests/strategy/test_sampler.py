import numpy as np
import optuna

from autoprune.strategy.sampler import CandidateSampler, seen_params
from autoprune.testing.evaluators import analytic_problem
from autoprune.testing.samplers import (
    PROBLEMS,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class Stubborn(CandidateSampler):
    """Always proposes the unpruned network: the base has to move and vary it."""

    def propose(self, study, trial, rng):
        return self.problem.space.dense()


def test_repeats_are_varied_inside_the_budget():
    problem = made_up_problem(8, 64, budget=0.5)
    with quiet_optuna():
        proposed = run_trials(new_study(Stubborn(problem, seed=0)), problem, 20, batch=5)
    assert len(set(proposed)) == 20
    assert (problem.latency_ms(proposed) <= problem.budget_ms).all()
    # They stay close to what was asked for: near the budget, where the unpruned network lands.
    assert np.median(problem.latency_ms(proposed)) > 0.8 * problem.budget_ms


def test_exhausted_spaces_are_searched_before_proposals_repeat(enumerate_all):
    problem = PROBLEMS["few candidates"]
    feasible = [
        candidate
        for candidate in enumerate_all(problem.space)
        if problem.latency_ms([candidate])[0] <= problem.budget_ms
    ]
    with quiet_optuna():
        proposed = run_trials(new_study(Stubborn(problem, seed=0)), problem, 2 * len(feasible))
    assert set(proposed) <= set(feasible)
    assert len(set(proposed)) >= 0.7 * len(feasible)


def test_other_seeds_propose_other_candidates():
    problem = made_up_problem(budget=0.5)
    with quiet_optuna():
        runs = [run_trials(new_study(Stubborn(problem, seed=s)), problem, 8) for s in (0, 1)]
    # The first proposal is the same, how repeats are varied is not.
    assert runs[0] != runs[1]


def test_fixed_parameters_are_left_to_optuna():
    problem = made_up_problem()
    sampler = Stubborn(problem, seed=0)
    with quiet_optuna():
        study = new_study(sampler)
        study.ask()
    names = dict(list(problem.space.distributions().items())[2:])
    assert sampler.sample_relative(study, study.trials[-1], names).keys() == names.keys()


def test_foreign_parameters_are_drawn_from_the_seed_and_the_trial():
    sampler = Stubborn(made_up_problem(), seed=0)
    with quiet_optuna():
        study = new_study(sampler)
        values = [study.ask().suggest_float("x", 0, 1) for _ in range(5)]
        again = new_study(Stubborn(made_up_problem(), seed=0))
        assert values == [again.ask().suggest_float("x", 0, 1) for _ in range(5)]
    assert len(set(values)) == 5
    assert np.ptp(values) > 0


def test_seen_parameters_are_those_of_all_other_trials_however_the_study_grew():
    problem = analytic_problem()
    distributions = problem.space.distributions()
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    rng = np.random.default_rng(0)
    bare = study.ask()  # has no parameters until the end

    def expected(number):
        return {
            tuple(trial.params[name] for name in distributions)
            for trial in study.get_trials()
            if trial.number != number and set(distributions) <= set(trial.params)
        }

    for _ in range(20):
        asked = study.ask(distributions)
        if rng.random() < 0.5:
            study.tell(asked, [1.0, 2.0])
        for number in (asked.number, int(rng.integers(asked.number)), -1):
            left_out = study.get_trials()[number]
            seen = seen_params(problem, study, left_out)
            assert seen == expected(left_out.number)
    for name, distribution in distributions.items():
        bare._suggest(name, distribution)
    left_out = study.ask()._get_latest_trial()
    assert len(seen_params(problem, study, left_out)) == len(expected(left_out.number)) == 21
