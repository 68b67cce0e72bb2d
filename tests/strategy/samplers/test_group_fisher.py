import dataclasses

import numpy as np
import pytest

from autoprune.strategy.damage import Damage
from autoprune.strategy.registry import SAMPLERS, wanted_damage
from autoprune.strategy.samplers.group_fisher import GroupFisher
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
        return SAMPLERS["group_fisher"]


def test_damage_comes_from_fisher_scores():
    assert wanted_damage("group_fisher") == "fisher"


def damaged(problem, seed=0):
    """Return the problem with random scores that are summed up, and costly blocks."""
    space, rng = problem.space, np.random.default_rng(seed)
    scores = {
        dim.group: rng.gamma(1.0, size=dim.size) * rng.uniform(0.1, 3) for dim in space.dimensions
    }
    curves = Damage.of_scores(space, scores, cumulative=False).groups
    damage = Damage(curves, rng.uniform(5, 30, size=len(space.blocks)))
    return dataclasses.replace(problem, damage=damage)


def test_one_unit_after_the_other_by_damage_per_ms():
    """With stages as short as a move the path is that of the plain greedy rule."""
    problem = damaged(made_up_problem(3, 10, multiple=1, droppable=False))
    space, keep = problem.space, np.ones((1, 3), bool)

    def total(widths):
        at = np.array([widths])
        return float(problem.damage.at(space, at, keep)[0]), float(problem.predict(at, keep)[0])

    path = [space.sizes.tolist()]
    while True:
        harm, ms = total(path[-1])
        options = []
        for group, width in enumerate(path[-1]):
            # One unit or several at once, whatever is cheapest per ms.
            for gone in [1, 2, 4, 8, width - 1]:
                if width - gone >= 1 and gone > 0:
                    after = [w - gone * (g == group) for g, w in enumerate(path[-1])]
                    more, less = total(after)
                    options.append(((more - harm) / (ms - less), group, gone, after))
        if not options:
            break
        path.append(min(options)[-1])
    sampler = GroupFisher(problem, seed=0, stages=5000)
    stages = [row.tolist() for row in sampler._stages[0]]
    assert stages == path
    assert len(path) > 20


def test_few_stages_come_close_to_many():
    problem = damaged(made_up_problem(6, 64, latency=MadeUpLatency(padding=8), multiple=1))
    space = problem.space

    def damages(stages):
        sampler = GroupFisher(problem, seed=0, stages=stages)
        rungs = [sampler._ladder.rung(index) for index in range(2, 9)]
        return problem.damage.at(space, space.widths(rungs), space.keep(rungs))

    many, few = damages(1000), damages(32)
    assert few.mean() <= 1.15 * many.mean()
    # The rule has to be better than the same ratio everywhere.
    uniform = SAMPLERS["uniform"](problem, seed=0)
    with quiet_optuna():
        rungs = run_trials(new_study(uniform), problem, 33)
    harm = problem.damage.at(space, space.widths(rungs), space.keep(rungs))
    ms = problem.latency_ms(rungs)
    sampler = GroupFisher(problem, seed=0, stages=128)
    for index in range(2, 7):
        mine = sampler._ladder.rung(index)
        own = problem.damage.at(space, space.widths([mine]), space.keep([mine]))[0]
        assert own <= harm[ms <= problem.latency_ms([mine])[0] * 1.001].min()


def test_blocks_go_where_they_are_cheap():
    problem = made_up_problem(4, 32)
    for harm, expected in ((1e-3, 2), (1e3, 0)):
        damage = dataclasses.replace(Damage.quadratic(problem.space), blocks=np.full(4, harm))
        sampler = GroupFisher(dataclasses.replace(problem, damage=damage), seed=0, stages=64)
        middle = sampler._ladder.rung(2)
        assert sum(middle.dropped) == expected


def test_no_evaluation_changes_the_path():
    problem = damaged(made_up_problem(budget=0.5))
    runs = []
    for loss in (lambda s, c: 0.0, lambda s, c: float(sum(c.ratios))):
        with quiet_optuna():
            study = new_study(SAMPLERS["group_fisher"](problem, seed=0))
            runs.append(run_trials(study, problem, 6, loss=loss))
    assert runs[0] == runs[1]
