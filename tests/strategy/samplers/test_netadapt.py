import numpy as np
import pytest

from autoprune.strategy.greedy import State
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.space import Candidate
from autoprune.testing.samplers import (
    MadeUpLatency,
    SamplerConformance,
    made_up_loss,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return SAMPLERS["netadapt"]


def naive_moves(problem, here, saving, most):
    """Return what every group and block offers, by place."""
    space, ms = problem.space, problem.latency_ms([here])[0]
    target = max(ms - saving, problem.budget_ms or 0.0)
    widths, found = space.widths([here])[0], {}
    for group, dim in enumerate(space.dimensions):
        if not space.active(space.keep([here]))[0, group]:
            continue
        # Half of the units stay, moved to the grid, but one width down is always open.
        least = np.ceil(widths[group] * (1 - most)) // dim.multiple * dim.multiple
        tried = []
        for width in dim.widths[::-1].tolist():
            if max(least, dim.smallest) <= width < widths[group]:
                ratios = list(here.ratios)
                ratios[group] = 1 - width / dim.size
                tried.append(space.snap(Candidate(tuple(ratios), here.dropped)))
        meets = [c for c in tried if problem.latency_ms([c])[0] <= target]
        best = min(tried, key=lambda c: problem.latency_ms([c])[0]) if tried else None
        option = meets[0] if meets else best
        if option is not None and problem.latency_ms([option])[0] < ms:
            found[group] = option
    if sum(here.dropped) < space.max_dropped:
        for block in np.flatnonzero(~np.array(here.dropped)):
            flags = list(here.dropped)
            flags[block] = True
            found[len(widths) + block] = space.snap(Candidate(here.ratios, tuple(flags)))
    return found


@pytest.mark.parametrize("budget", [None, 0.9])
@pytest.mark.parametrize("step", [0, 3])
def test_moves_save_the_latency_of_the_step(budget, step):
    problem = made_up_problem(4, 32, latency=MadeUpLatency(padding=2), budget=budget, multiple=1)
    sampler = SAMPLERS["netadapt"](problem, seed=0, step=0.05, decay=0.8)
    here = problem.space.dense()
    for _ in range(3):
        if problem.budget_ms is not None and problem.latency_ms([here])[0] <= problem.budget_ms:
            break
        moves = sampler.moves(State(here, problem.latency_ms([here])[0]), step)
        expected = naive_moves(problem, here, 0.05 * 0.8**step * problem.dense_ms, 0.5)
        assert {move.place: move.to.candidate for move in moves} == expected
        here = next(iter(expected.values()))


def test_the_smallest_increase_per_ms_is_committed():
    problem = made_up_problem(3, 32, multiple=1)
    space, loss = problem.space, lambda c: made_up_loss(problem.space, c)
    here, path = space.dense(), []
    for step in range(4):
        options = naive_moves(problem, here, 0.025 * 0.96**step * problem.dense_ms, 0.5)
        ms = problem.latency_ms([here])[0]
        here = min(
            options.values(),
            key=lambda c: (max(loss(c) - loss(here), 0) + 1e-6) / (ms - problem.latency_ms([c])[0]),
        )
        path.append(here)
    with quiet_optuna():
        sampler = SAMPLERS["netadapt"](problem, seed=0, lazy=False)
        proposed = run_trials(new_study(sampler), problem, 30)
    positions = [proposed.index(state) for state in path[:3]]
    assert positions == sorted(positions)
    # The dense network, then seven moves a step.
    assert positions[0] <= 7 < positions[1] <= 14 < positions[2]


def test_a_hundred_evaluations_go_far():
    problem = made_up_problem(16, 64)
    with quiet_optuna():
        proposed = run_trials(new_study(SAMPLERS["netadapt"](problem, seed=0)), problem, 100)
    assert min(problem.latency_ms(proposed)) < 0.5 * problem.dense_ms
