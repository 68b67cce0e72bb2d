import dataclasses

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autoprune.strategy.budget import project
from autoprune.strategy.damage import Damage
from autoprune.strategy.knapsack_sampler import KnapsackSampler, KnapsackSettings
from autoprune.strategy.pareto import hypervolume
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.space import Dimension, SearchSpace
from autoprune.strategy.surrogate import Prior
from autoprune.testing.samplers import (
    MadeUpLatency,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


def sampler(problem, *, seed=0, **options):
    return KnapsackSampler(problem, seed=seed, settings=KnapsackSettings(**options), prior=Prior())


def coupled_problem(seed, budget=None):
    """Return a problem and a loss whose shapes and couplings its damage curves do not know."""
    rng = np.random.default_rng(seed)
    latency = MadeUpLatency(padding=4)
    problem = made_up_problem(8, 32, latency=latency, multiple=1, budget=budget)
    height = np.exp(rng.normal(-1.2, 0.7, 9)) * np.where(np.arange(9) == 0, 4.0, 1.0)
    power, coupling = rng.uniform(1.2, 3.0, 9), rng.normal(0.3, 0.3, 8)
    blocks = np.exp(rng.normal(-1.0, 0.5, 8))
    ratio = np.arange(32, -1, -1) / 32
    guess = 3.0 * height * np.exp(rng.normal(0.0, 0.5, 9))
    damage = Damage(
        tuple(scale * ratio**2 for scale in guess),
        3.0 * blocks * np.exp(rng.normal(0.0, 0.5, 8)),
    )

    def loss(space, candidate):
        keep = space.keep([candidate])
        part = height * (1.0 - space.widths([candidate])[0] / 32) ** power * space.active(keep)[0]
        rise = part.sum() + (blocks * ~keep[0]).sum()
        rise += (coupling * np.sqrt(part[0] * part[1:])).sum()
        return float(0.3 * np.exp(min(rise, 2.3)))

    return dataclasses.replace(problem, damage=damage), loss


def reached(problem, study, trials):
    """Return the hypervolume of the first trials, with an accuracy that falls with log-loss."""
    values = np.array([trial.values for trial in study.trials[:trials]])
    accuracy = np.clip(1.0 - np.log(values[:, 0] / 0.3) / 2.3, 0.0, 1.0)
    return hypervolume(accuracy, values[:, 1], dense_ms=problem.dense_ms)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_twenty_evaluations_beat_sixty_of_random_and_tpe(seed):
    problem, loss = coupled_problem(seed)
    with quiet_optuna():
        studies = {}
        for name, trials in (("knapsack", 20), ("random", 60), ("tpe", 60)):
            studies[name] = new_study(SAMPLERS[name](problem, seed=seed))
            run_trials(studies[name], problem, trials, loss=loss)
    ours = reached(problem, studies["knapsack"], 20)
    assert ours > reached(problem, studies["random"], 60)
    assert ours > reached(problem, studies["tpe"], 60)


def test_it_goes_on_learning_after_the_anchors():
    problem, loss = coupled_problem(0, budget=0.6)
    with quiet_optuna():
        study = new_study(sampler(problem, exploration=0.0))
        run_trials(study, problem, 25, loss=loss)
    losses = [trial.values[0] for trial in study.trials]
    anchors = len(sampler(problem).anchors)
    assert min(losses[anchors:]) < min(losses[:anchors])


def test_anchors_come_first_and_are_not_repeated():
    problem, _ = coupled_problem(0)
    made = sampler(problem)
    with quiet_optuna():
        proposed = run_trials(
            new_study(made), problem, len(made.anchors) + 1, loss=lambda *_: 1.0, batch=3
        )
    assert tuple(proposed[:-1]) == made.anchors
    assert proposed[-1] not in made.anchors
    ms = problem.latency_ms(made.anchors)
    assert ms.min() < 1.1 * problem.fastest[1]
    assert (np.diff(ms) < 0).all()


def test_exploration_begins_late_with_one_ratio_for_all_groups():
    problem, loss = coupled_problem(0)
    with quiet_optuna():
        proposed = run_trials(new_study(sampler(problem, exploration=1.0)), problem, 23, loss=loss)
    low, high = problem.fastest[1], problem.dense_ms
    uniform = project(problem, problem.space.dense(), budget_ms=(low + high) / 2)
    assert proposed.index(uniform) == 20
    assert len(set(proposed)) == 23


def test_anchors_beyond_a_destroyed_one_are_left_out():
    problem, _ = coupled_problem(0)
    made = sampler(problem)

    def loss(space, candidate):
        # Destroyed below half of the latency.
        fast = problem.latency_ms([candidate])[0] < 0.5 * problem.dense_ms
        return 20.0 if fast else 1.0

    with quiet_optuna():
        proposed = run_trials(new_study(made), problem, len(made.anchors), loss=loss)
    fast = [anchor for anchor in made.anchors if anchor in proposed]
    assert (problem.latency_ms(fast) < 0.5 * problem.dense_ms).sum() == 1


def test_with_a_budget_candidates_are_near_it():
    problem, loss = coupled_problem(1, budget=0.5)
    with quiet_optuna():
        study = new_study(sampler(problem, exploration=0.0))
        proposed = run_trials(study, problem, 18, loss=loss)
    late = problem.latency_ms(proposed[len(sampler(problem).anchors) :])
    assert (late > 0.9 * problem.budget_ms).mean() > 0.6


def test_order_of_results_does_not_matter():
    problem, loss = coupled_problem(2)
    proposed = []
    for order in (range(12), reversed(range(12))):
        with quiet_optuna():
            study = new_study(sampler(problem))
            trials = [study.ask(problem.space.distributions()) for _ in range(12)]
            for index in order:
                candidate = problem.space.candidate(trials[index].params)
                ms = float(problem.latency_ms([candidate])[0])
                study.tell(trials[index], [loss(problem.space, candidate), ms])
            study.sampler = sampler(problem)
            proposed.append(study.ask(problem.space.distributions()).params)
    assert proposed[0] == proposed[1]


def test_rough_losses_make_no_front():
    problem, _ = coupled_problem(0)
    made = sampler(problem)
    with quiet_optuna():
        study = new_study(made)
    for share, screened in ((0.2, True), (0.1, False)):
        ratios = tuple(share * dim.max_ratio for dim in problem.space.dimensions)
        candidate = problem.space.snap(dataclasses.replace(problem.space.dense(), ratios=ratios))
        study.add_trial(
            optuna.trial.create_trial(
                params=problem.space.params(candidate),
                distributions=problem.space.distributions(),
                values=[1.0, 1.0],
                user_attrs={"screened": True} if screened else {},
                state=TrialState.COMPLETE,
            )
        )
    with quiet_optuna():
        trial = study.ask()
    history = made._history(study, study.trials[trial.number])
    assert history.weight.tolist() == [0.25, 1.0]
    assert made._elite(history).tolist() == [1]


@pytest.mark.parametrize("case", ["no damage", "dead units", "skewed", "one group", "one width"])
def test_odd_problems(case):
    problem = made_up_problem(3, 16, latency=MadeUpLatency(padding=4), multiple=1)
    quadratic = Damage.quadratic(problem.space)
    if case == "dead units":
        curves = tuple(np.where(np.arange(17) >= 8, 0.0, curve) for curve in quadratic.groups)
        flat = (np.zeros(17), *curves[1:])
        problem = dataclasses.replace(problem, damage=Damage(flat, np.zeros(3)))
    if case == "skewed":
        curves = tuple(curve * 10.0 ** (2 * g - 4) for g, curve in enumerate(quadratic.groups))
        problem = dataclasses.replace(problem, damage=Damage(curves, quadratic.blocks))
    if case == "one group":
        space = SearchSpace((Dimension("g", 32, 1),))
        problem = Problem(space, lambda widths, keep: widths[:, 0] / 10.0)
    if case == "one width":
        space = SearchSpace((Dimension("g", 32, 16, 16), Dimension("h", 4, 4)))
        problem = Problem(space, lambda widths, keep: widths[:, 0] / 10.0)
    count = 2 if case == "one width" else 14
    with quiet_optuna():
        proposed = run_trials(
            new_study(sampler(problem)), problem, count, batch=3, fails=lambda n: n == 4
        )
    assert len(set(proposed)) >= (1 if case == "one width" else count)


def test_a_model_that_ranks_badly_asks_about_single_groups():
    problem, _ = coupled_problem(0)
    made = sampler(problem, anchors=2)
    rng = np.random.default_rng(0)
    losses = {}

    def loss(space, candidate):
        return losses.setdefault(candidate, float(rng.uniform(1.0, 2.0)))

    with quiet_optuna():
        study = new_study(made)
        run_trials(study, problem, 30, loss=loss)
        trial = study.ask()
    history = made._history(study, study.trials[trial.number])
    surrogate = made._fitted(history)
    assert surrogate.judgement < 0.5
    asked = made._sensitivity(history, surrogate, 30)
    rows = made._elite(history)
    middle = history.widths[rows[len(rows) // 2]]
    assert (problem.space.widths([asked])[0] != middle).sum() <= 1
    assert made._sensitivity(history, surrogate, 31) is None
    trusted = dataclasses.replace(surrogate, judgement=0.9)
    assert made._sensitivity(history, trusted, 30) is None
