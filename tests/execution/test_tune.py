import logging
import os
import time

import optuna
import pytest

from autoprune.errors import RunError
from autoprune.execution import inline
from autoprune.execution.cluster import Cluster
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def tune():
    """The executor, on a Ray that is started once for this file."""
    ray = pytest.importorskip("ray")
    from autoprune.execution import tune

    with pytest.MonkeyPatch.context() as patch:
        for name, value in tune._ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield tune
        ray.shutdown()


def test_one_worker_promotes_what_inline_promotes(tune, tmp_path):
    problem = analytic_problem(budget_ms=3.0)
    here, there = (driver_for(problem, trials=16, rungs=2) for _ in range(2))

    inline.run(here, AnalyticEvaluator(problem))
    tune.run(there, AnalyticEvaluator(problem), workers=1, scratch=tmp_path / "ray")

    assert [record.rung for record in here.records] == [0] * 16 + [1] * 4 + [2]
    assert there.records == here.records
    assert there.stopped == here.stopped


def driver_for(problem, *, trials, **options):
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=build_sampler("tpe", problem, seed=1)
    )
    return StudyDriver(study, problem, limits=Limits(trials), **options)


def test_one_worker_gives_what_inline_gives(tune, tmp_path, capfd):
    problem = analytic_problem(budget_ms=3.0)
    here, there = driver_for(problem, trials=15), driver_for(problem, trials=15)
    environment = dict(os.environ)

    inline.run(here, AnalyticEvaluator(problem))
    tune.run(there, AnalyticEvaluator(problem), workers=1, scratch=tmp_path / "ray")

    assert there.records == here.records
    assert there.stopped == here.stopped
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_dead_worker_is_a_failed_trial_and_the_others_go_on(tune, tmp_path):
    problem = analytic_problem(budget_ms=3.0)
    reference = driver_for(problem, trials=3)
    inline.run(reference, AnalyticEvaluator(problem))
    deadly = [reference.records[1].evaluation.candidate.key]
    driver = driver_for(problem, trials=6)

    tune.run(driver, AnalyticEvaluator(problem, deadly=deadly), workers=2, scratch=tmp_path / "ray")

    by_number = {record.number: record.evaluation for record in driver.records}
    assert [by_number[n].status for n in range(6)] == ["complete", "failed", *["complete"] * 4]
    assert "worker died, twice" in by_number[1].reason
    assert by_number[1].latency_ms <= 3.0


def test_fault_in_the_driver_is_raised_and_not_only_logged(tune, tmp_path):
    problem = analytic_problem()

    def listener(progress):
        raise OSError("disk full")

    driver = driver_for(problem, trials=4, listeners=[listener])
    with pytest.raises(OSError, match="disk full"):
        tune.run(driver, AnalyticEvaluator(problem), workers=1, scratch=tmp_path / "ray")

    assert len(driver.records) == 1


class Unpicklable(AnalyticEvaluator):
    def __reduce__(self):
        raise TypeError("cannot pickle a dream")


class Unloadable(AnalyticEvaluator):
    def __reduce__(self):
        return int, ("no number",)  # fails in the worker


def test_evaluator_that_cannot_be_sent_is_refused(tune, tmp_path):
    problem = analytic_problem()
    with pytest.raises(RunError, match=r"cannot be sent to worker.*dream.*executor 'inline'"):
        tune.run(
            driver_for(problem, trials=2), Unpicklable(problem), workers=1, scratch=tmp_path / "ray"
        )


def test_worker_that_cannot_be_made_says_why(tune, tmp_path):
    problem = analytic_problem()
    driver = driver_for(problem, trials=1)
    tune.run(driver, Unloadable(problem), workers=1, scratch=tmp_path / "ray")
    (record,) = driver.records
    assert not record.complete
    assert "invalid literal for int() with base 10: 'no number'" in record.evaluation.reason


def test_torchvision_model_reaches_a_worker_beside_any_torch(tune, tmp_path):
    from autoprune.network.vision import build_torchvision

    problem = analytic_problem()
    evaluator = AnalyticEvaluator(problem)
    evaluator.model = build_torchvision("squeezenet1_1")  # opened before every evaluation
    driver = driver_for(problem, trials=1)
    tune.run(driver, evaluator, workers=1, scratch=tmp_path / "ray")
    assert [record.evaluation.reason for record in driver.records] == [""]


def test_data_that_a_node_lacks_end_the_search_before_it_begins(tune, tmp_path):
    problem = analytic_problem()
    driver = driver_for(problem, trials=2)
    cluster = Cluster(files=(tmp_path, tmp_path / "photos"))
    match = r"(?s)1 faults.*nothing was evaluated.*\(\d.*\): has no \S+/photos\n.*same path"
    with pytest.raises(RunError, match=match):
        tune.run(
            driver,
            AnalyticEvaluator(problem),
            workers=1,
            scratch=tmp_path / "ray",
            cluster=cluster,
        )
    assert driver.records == []


def test_asking_for_more_than_there_is_is_refused(tune, tmp_path):
    problem = analytic_problem()
    with pytest.raises(RunError, match="no node of the Ray cluster has 1 CPU and 1 GPU"):
        tune.run(
            driver_for(problem, trials=2),
            AnalyticEvaluator(problem),
            workers=None,
            scratch=tmp_path / "ray",
            cluster=Cluster(gpus_per_trial=1.0),
        )


class Sleepy(AnalyticEvaluator):
    def __call__(self, candidate, bar=()):
        if candidate.key in self.deadly:
            time.sleep(60)
        return self._evaluation(candidate, loss=1.0, reason="")


def test_evaluation_beyond_its_time_has_failed_and_the_worker_goes_on(tune, tmp_path):
    problem = analytic_problem(budget_ms=3.0)
    reference = driver_for(problem, trials=2)
    inline.run(reference, AnalyticEvaluator(problem))
    hanging = [reference.records[0].evaluation.candidate.key]
    driver = driver_for(problem, trials=2)

    tune.run(
        driver,
        Sleepy(problem, deadly=hanging),
        workers=1,
        scratch=tmp_path / "ray",
        cluster=Cluster(time_limit_s=0.5),
    )

    statuses = [record.evaluation.status for record in driver.records]
    assert statuses == ["failed", "screened"]
    assert "longer than 0.5 s" in driver.records[0].evaluation.reason


def test_loggers_hear_of_every_evaluation_and_their_files_stay(tune, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    problem = analytic_problem(budget_ms=3.0)
    driver = driver_for(problem, trials=3)

    tune.run(
        driver,
        AnalyticEvaluator(problem),
        workers=1,
        scratch=tmp_path / "ray",
        cluster=Cluster(loggers=("tensorboard", "mlflow")),
    )

    losses = sorted(record.evaluation.loss for record in driver.records)
    boards = [accumulator(str(file.parent)).Reload() for file in tmp_path.rglob("events.out*")]
    logged = [board.Scalars("ray/tune/loss")[0].value for board in boards]
    assert sorted(logged) == pytest.approx(losses, rel=1e-6)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("autoprune")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.metrics["loss"] for run in runs) == pytest.approx(losses)


@pytest.mark.parametrize("form", ["folder", "uri", "fsspec"])
def test_files_are_kept_wherever_a_file_system_is_known(tune, tmp_path, form):
    from fsspec.implementations.memory import MemoryFileSystem

    place = {
        "folder": str(tmp_path / "kept"),
        "uri": (tmp_path / "kept").as_uri(),
        "fsspec": "memory:///kept",
    }[form]
    problem = analytic_problem()
    driver = driver_for(problem, trials=1)
    tune.run(
        driver,
        AnalyticEvaluator(problem),
        workers=1,
        scratch=tmp_path / "run" / "ray",
        cluster=Cluster(storage=place),
    )

    assert driver.records[0].complete
    if form == "fsspec":
        assert MemoryFileSystem().ls("/kept/run")
    else:
        assert any((tmp_path / "kept" / "run").iterdir())
    assert not (tmp_path / "run").exists()


def test_storage_that_nothing_knows_is_refused(tune, tmp_path):
    problem = analytic_problem()
    with pytest.raises(RunError, match="cannot use the storage 'gopher://x'"):
        tune.run(
            driver_for(problem, trials=1),
            AnalyticEvaluator(problem),
            workers=1,
            scratch=tmp_path / "ray",
            cluster=Cluster(storage="gopher://x"),
        )
