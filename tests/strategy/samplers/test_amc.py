import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from optuna.trial import TrialState

from autoprune.errors import SettingsError, UnknownNameError
from autoprune.strategy.registry import SAMPLERS
from autoprune.strategy.samplers.amc import REWARDS, Outcome, learnable
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)

#: A small agent that learns from the third trial on.
QUICK = {"warmup": 3, "hidden": 16, "batch": 16}


class TestConformance(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return partial(SAMPLERS["amc"], **QUICK)


def outcome(**changes):
    values = {
        "loss": 0.5, "accuracy": 0.9, "latency_ms": 2.0, "macs": 1e6, "dense_ms": 8.0,
        "budget_ms": 3.0,
    }  # fmt: skip
    return Outcome(**(values | changes))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", -0.5),
        ("accuracy", 0.9),
        ("latency", -0.1 * math.log(2000)),
        ("macs", -0.1 * math.log(1e6)),
        ("distiller", 1.9),
    ],
)
def test_rewards(name, expected):
    assert REWARDS[name](outcome()) == pytest.approx(expected)
    assert REWARDS[name](outcome(loss=1.0, accuracy=0.5)) < expected


def test_distiller_punishes_what_is_over_the_budget():
    assert REWARDS["distiller"](outcome(latency_ms=4.0)) == pytest.approx(-3.5)


def test_wrong_rewards():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        SAMPLERS["amc"](made_up_problem(), seed=0, reward="acuracy")
    with pytest.raises(SettingsError, match="needs the network's operators"):
        SAMPLERS["amc"](made_up_problem(), seed=0, reward="macs")


def test_trials_are_learned_by_number_up_to_the_first_pending_one():
    problem = made_up_problem()
    sampler = SAMPLERS["amc"](problem, seed=0, **QUICK)
    with quiet_optuna():
        study = new_study(sampler)
        trials = [study.ask(problem.space.distributions()) for _ in range(5)]
        study.tell(trials[4], [1.0, 1.0])
        study.tell(trials[0], [1.0, 1.0])
        study.tell(trials[1], state=TrialState.FAIL)
        assert [trial.number for trial in learnable(problem, study)] == [0]
        study.tell(trials[2], [1.0, 1.0])
        study.tell(trials[3], [1.0, 1.0])
        assert [trial.number for trial in learnable(problem, study)] == [0, 2, 3, 4]


def test_a_trial_that_never_ends_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr("autoprune.strategy.samplers.amc._PATIENCE", 8)
    problem = made_up_problem(1, 8)
    with quiet_optuna():
        study = new_study(SAMPLERS["random"](problem, seed=0))
        study.ask(problem.space.distributions())
        run_trials(study, problem, 7)
        assert learnable(problem, study) == []
        run_trials(study, problem, 1)
        assert [trial.number for trial in learnable(problem, study)] == list(range(1, 9))


@pytest.mark.parametrize("budget", [None, 0.5])
def test_a_new_agent_on_an_old_study_is_the_one_that_learned_all_along(budget):
    problem = made_up_problem(3, 16, budget=budget)
    sampler = SAMPLERS["amc"](problem, seed=0, **QUICK)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 10, fails=lambda n: n == 4)
    fresh = SAMPLERS["amc"](problem, seed=0, **QUICK)
    old, new = sampler._trained(study), fresh._trained(study)
    assert (old.agent.actor.theta == new.agent.actor.theta).all()
    assert (old.agent.critic.theta == new.agent.critic.theta).all()
    untrained = SAMPLERS["amc"](problem, seed=0, **QUICK)._student
    assert (new.agent.actor.theta != untrained.agent.actor.theta).any()
    assert new.episodes == 9


def test_a_late_trial_is_put_in_its_place(monkeypatch):
    monkeypatch.setattr("autoprune.strategy.samplers.amc._PATIENCE", 8)
    problem = made_up_problem(3, 16)
    sampler = SAMPLERS["amc"](problem, seed=0, **QUICK)
    with quiet_optuna():
        study = new_study(SAMPLERS["random"](problem, seed=0))
        late = study.ask(problem.space.distributions())
        run_trials(study, problem, 8)
        assert sampler._trained(study).episodes == 8
        study.tell(late, [0.1, 1.0])
        again = sampler._trained(study)
        fresh = SAMPLERS["amc"](problem, seed=0, **QUICK)._trained(study)
    assert again.episodes == 9
    assert (again.agent.actor.theta == fresh.agent.actor.theta).all()


def test_noise_shrinks_after_the_warm_up():
    problem = made_up_problem(2, 8)
    sampler = SAMPLERS["amc"](problem, seed=0, warmup=2, hidden=8, batch=4)
    spreads = []
    with quiet_optuna():
        study = new_study(sampler)
        for _ in range(5):
            spreads.append(sampler._trained(study).spread)
            run_trials(study, problem, 1)
    assert spreads == [None, None, *(pytest.approx(0.5 * 0.95**n) for n in range(3))]


def test_what_is_over_the_budget_teaches_nothing():
    problem = made_up_problem(3, 16, budget=0.5)
    dense = problem.space.dense()
    for reward, expected in (("loss", 0), ("distiller", 1)):
        sampler = SAMPLERS["amc"](problem, seed=0, reward=reward, **QUICK)
        with quiet_optuna():
            study = new_study(sampler)
            study.enqueue_trial(problem.space.params(dense))
            study.tell(study.ask(problem.space.distributions()), [0.1, problem.dense_ms])
        assert sampler._trained(study).episodes == expected


def test_episodes_without_a_budget_know_their_target():
    problem = made_up_problem(3, 16)
    sampler = SAMPLERS["amc"](problem, seed=0, **QUICK)
    with quiet_optuna():
        study = new_study(sampler)
        run_trials(study, problem, 20)
    goals = []
    for trial in study.trials:
        episode = sampler._episode(trial)
        assert episode.states.shape[1] == 12
        assert len(set(episode.states[:, 11].tolist())) == 1
        goals.append(float(episode.states[0, 11]))
        assert trial.values[1] <= goals[-1] * problem.dense_ms * (1 + 1e-5)
        assert episode.rewards[:, 0].tolist() == pytest.approx(
            [-trial.values[0]] * len(episode.rewards)
        )
        assert episode.last[:, 0].tolist() == [0.0] * (len(episode.last) - 1) + [1.0]
        assert (episode.following[:-1] == episode.states[1:]).all()
    assert min(goals) < 0.2
    assert max(goals) > 0.6


@pytest.mark.slow
def test_it_learns_which_group_to_spare():
    """One group costs ten times as much as the others; with fixed seeds nothing is random."""
    problem = made_up_problem(3, 32, budget=0.5, droppable=False)

    def loss(space, candidate):
        return float(np.square(candidate.ratios) @ [1.0, 10.0, 1.0, 1.0])

    options = {"warmup": 20, "hidden": 32, "actor_rate": 1e-3, "updates": 16}
    with quiet_optuna():
        study = new_study(SAMPLERS["amc"](problem, seed=0, **options))
        proposed = run_trials(study, problem, 80, loss=loss)
    losses = [loss(problem.space, candidate) for candidate in proposed]
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:20])


def test_no_torch_is_loaded():
    code = (
        "import sys, autoprune.strategy.samplers.amc as m\n"
        "from autoprune.strategy.problem import Problem\n"
        "from autoprune.strategy.space import Dimension, SearchSpace\n"
        "import optuna\n"
        "space = SearchSpace((Dimension('a', 8, 1), Dimension('b', 8, 1)))\n"
        "problem = Problem(space, lambda w, k: w.prod(axis=1) * 1.0)\n"
        "sampler = m.amc(problem, seed=0, warmup=1, hidden=8)\n"
        "study = optuna.create_study(directions=['minimize'] * 2, sampler=sampler)\n"
        "for _ in range(4):\n"
        "    trial = study.ask(space.distributions())\n"
        "    study.tell(trial, [1.0, 1.0])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
