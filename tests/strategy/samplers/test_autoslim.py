import pytest

from autoprune.strategy.budget import project
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
        return SAMPLERS["autoslim"]


def steps(problem, fraction):
    """Yield, step by step, all that plain AutoSlim evaluates; the best of each is committed."""
    space = problem.space
    budget = problem.budget_ms or 0.0
    here = space.dense()
    yield {project(problem, here)}
    for _ in range(1000):
        ms = problem.latency_ms([here])[0]
        if ms <= budget:
            return
        options = []
        widths = space.widths([here])[0]
        for group, dim in enumerate(space.dimensions):
            # The first width at least a step below that is faster.
            for width in dim.widths[::-1].tolist():
                lowest = max(widths[group] - fraction * dim.size, dim.smallest)
                ratios = list(here.ratios)
                ratios[group] = 1 - width / dim.size
                option = space.snap(Candidate(tuple(ratios), here.dropped))
                if width <= lowest and problem.latency_ms([option])[0] < ms * (1 - 1e-9):
                    options.append(option)
                    break
        if sum(here.dropped) < space.max_dropped:
            for block in range(len(space.blocks)):
                flags = [gone or index == block for index, gone in enumerate(here.dropped)]
                option = space.snap(Candidate(here.ratios, tuple(flags)))
                if option != here:
                    options.append(option)
        if not options:
            return
        yield {project(problem, option) for option in options}
        here = min(options, key=lambda o: made_up_loss(space, project(problem, o)))


@pytest.mark.parametrize("budget", [None, 0.6])
@pytest.mark.parametrize("batch", [1, 4])
def test_every_move_of_every_step_is_evaluated_and_the_best_committed(budget, batch):
    problem = made_up_problem(3, 32, latency=MadeUpLatency(padding=4), budget=budget)
    expected = list(steps(problem, 0.125))[:6]
    wanted = set().union(*expected)
    assert len(wanted) >= 14
    sampler = SAMPLERS["autoslim"](problem, seed=0, lazy=False)
    with quiet_optuna():
        proposed = run_trials(new_study(sampler), problem, len(wanted), batch=batch)
    if batch > 1:
        # With evaluations pending at the end of a step the walk goes ahead of what is known.
        first = expected[0] | expected[1]
        assert set(proposed[: len(first)]) == first
        return
    assert set(proposed) == wanted
    step = {candidate: n for n, found in reversed(list(enumerate(expected))) for candidate in found}
    order = [step[candidate] for candidate in proposed]
    assert order == sorted(order)


def test_per_ms_prefers_what_saves_more():
    problem = made_up_problem(5, 32)
    reached = []
    for per_ms in (False, True):
        sampler = SAMPLERS["autoslim"](problem, seed=0, per_ms=per_ms)
        with quiet_optuna():
            proposed = run_trials(new_study(sampler), problem, 40)
        reached.append(min(problem.latency_ms(proposed)))
    assert reached[1] < reached[0]


def test_lazy_walks_get_further_in_as_many_evaluations():
    problem = made_up_problem(10, 32)
    reached = []
    for lazy in (False, True):
        sampler = SAMPLERS["autoslim"](problem, seed=0, per_ms=True, lazy=lazy)
        with quiet_optuna():
            proposed = run_trials(new_study(sampler), problem, 60)
        reached.append(min(problem.latency_ms(proposed)) / problem.dense_ms)
    assert reached[1] < 0.5 * reached[0]


def test_after_the_walk_its_states_are_varied():
    problem = made_up_problem(2, 8, multiple=4)
    with quiet_optuna():
        proposed = run_trials(new_study(SAMPLERS["autoslim"](problem, seed=0)), problem, 24)
    assert len(set(proposed)) > 15
