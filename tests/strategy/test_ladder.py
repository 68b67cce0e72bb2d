import numpy as np
import pytest
from optuna.samplers import RandomSampler

from autoprune.strategy.budget import project
from autoprune.strategy.ladder import Ladder, corput
from autoprune.testing.samplers import MadeUpLatency, made_up_problem, new_study, quiet_optuna


def uniform_path(problem):
    space = problem.space
    largest = 1.0 - space.smallest_widths / space.sizes

    def path(positions):
        none = np.zeros((len(positions), len(space.blocks)), bool)
        return space.realise(positions[:, None] * largest, none)

    return path


@pytest.mark.parametrize("budget", [None, 0.4])
def test_rungs_are_at_log_even_latencies_within_the_budget(budget):
    problem = made_up_problem(4, 256, budget=budget, multiple=1)
    ladder = Ladder(problem, uniform_path(problem))
    top = problem.dense_ms if budget is None else problem.budget_ms
    floor = problem.fastest[1]
    for index, share in enumerate([0, 1, 1 / 2, 1 / 4, 3 / 4, 1 / 8]):
        ms = float(problem.latency_ms([ladder.rung(index)])[0])
        target = top ** (1 - share) * floor**share
        assert ms <= target * (1 + 1e-9)
        # A single unit is up to a few per cent of the smallest networks, and blocks that a target
        # below the family's end takes are coarse.
        assert ms >= 0.85 * target


def test_rung_is_the_first_point_within_its_target_completed():
    problem = made_up_problem(3, 24, latency=MadeUpLatency(padding=4), budget=0.5, multiple=1)
    ladder = Ladder(problem, uniform_path(problem))
    # A scan far finer than the steps of the family.
    widths, keep = uniform_path(problem)(np.linspace(0, 1, 20001))
    first = int(np.argmax(problem.predict(widths, keep) <= problem.budget_ms))
    point = problem.space.candidates(widths[first : first + 1], keep[first : first + 1])[0]
    assert ladder.rung(0) == project(problem, point)


def test_exhausted_families_give_their_rungs_in_turn():
    problem = made_up_problem(1, 8, multiple=4, droppable=False)
    path = uniform_path(problem)
    ladder = Ladder(problem, path)
    with quiet_optuna():
        study = new_study(RandomSampler(0))
        for width in (8, 4):
            candidate = problem.space.candidates(np.full((1, 2), width), np.ones((1, 1), bool))[0]
            study.enqueue_trial(problem.space.params(candidate))
            study.ask(problem.space.distributions())
        found = []
        for _ in range(4):
            study.ask()
            found.append(ladder.first_new(study, study.trials[-1]))
    assert len(set(found)) >= 2
    assert found[:2] == found[2:]


def test_corput_halves_the_widest_gap():
    values = [corput(index) for index in range(17)]
    assert sorted(values) == pytest.approx(np.linspace(0, 1, 17))
    for count in range(2, 17):
        gaps = np.diff(sorted(values[:count]))
        assert gaps.max() <= 2 * gaps.min() + 1e-12
