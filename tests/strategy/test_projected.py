import numpy as np
import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.strategy.projected import ProjectedSampler, build_sampler
from autoprune.testing.samplers import (
    SamplerConformance,
    made_up_problem,
    new_study,
    quiet_optuna,
    run_trials,
)


class TestPlainRandom(SamplerConformance):
    @pytest.fixture
    def factory(self):
        return lambda problem, *, seed: ProjectedSampler(problem, RandomSampler, seed=seed)


class Recorder(RandomSampler):
    """Notes what it is asked and told."""

    def __init__(self, seed, log):
        super().__init__(seed)
        self.log = log

    def before_trial(self, study, trial):
        self.log.append(("before", trial.number))

    def after_trial(self, study, trial, state, values):
        self.log.append(("after", trial.number, state.name))


def test_the_wrapped_sampler_hears_of_every_trial():
    problem, log = made_up_problem(budget=0.5), []
    sampler = ProjectedSampler(problem, lambda seed: Recorder(seed, log), seed=0)
    with quiet_optuna():
        run_trials(new_study(sampler), problem, 3, fails=lambda n: n == 1)
    assert log == [
        ("before", 0),
        ("after", 0, "COMPLETE"),
        ("before", 1),
        ("after", 1, "FAIL"),
        ("before", 2),
        ("after", 2, "COMPLETE"),
    ]


def test_the_wrapped_sampler_learns_from_projected_parameters():
    problem = made_up_problem(budget=0.3)
    seen = []

    class Reader(RandomSampler):
        def sample_relative(self, study, trial, search_space):
            seen.append([dict(other.params) for other in study.trials if other.params])
            return {}

    with quiet_optuna():
        proposed = run_trials(new_study(ProjectedSampler(problem, Reader, seed=0)), problem, 4)
    assert seen[-1] == [problem.space.params(candidate) for candidate in proposed[:3]]


def test_startup_candidates_cover_the_latencies():
    problem = made_up_problem(10, 64)
    with quiet_optuna():
        runs = [
            run_trials(
                new_study(ProjectedSampler(problem, RandomSampler, seed=0, startup_trials=n)),
                problem,
                20,
            )
            for n in (0, 20)
        ]
    spread = [np.std(problem.latency_ms(run)) for run in runs]
    # Twenty independent vectors of eleven ratios are all about equally fast.
    assert spread[1] > 1.5 * spread[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: NSGAIISampler(seed=seed, population_size=4),
        lambda seed: TPESampler(seed=seed, multivariate=True),
    ],
)
def test_other_samplers_of_optuna_work(make):
    problem = made_up_problem(budget=0.4)
    sampler = ProjectedSampler(problem, make, seed=0, startup_trials=4)
    with quiet_optuna():
        proposed = run_trials(new_study(sampler), problem, 16, batch=2)
    assert (problem.latency_ms(proposed) <= problem.budget_ms).all()
    assert len(set(proposed)) == 16


@pytest.mark.parametrize(
    ("name", "options"), [("nsga2", {"population_size": 4}), ("tpe", {"startup_trials": 4})]
)
def test_runs_resume_from_a_journal(tmp_path, name, options):
    problem = made_up_problem(budget=0.4)

    def study():
        backend = JournalFileBackend(str(tmp_path / "study.journal"))
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name="run",
            directions=["minimize", "minimize"],
            sampler=build_sampler(name, problem, seed=0, **options),
            load_if_exists=True,
        )

    with quiet_optuna():
        whole = run_trials(new_study(build_sampler(name, problem, seed=0, **options)), problem, 16)
        parts = [run_trials(study(), problem, trials) for trials in (7, 9)]
    assert parts[0] + parts[1] == whole
