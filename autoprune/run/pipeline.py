"""One run from settings to files: made or continued, searched, scored once on test data."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from torch import nn

from autoprune.errors import RunError, SettingsError
from autoprune.evaluation import Evaluates, Evaluator
from autoprune.execution import inline
from autoprune.execution.cache import CachedEvaluator, EvaluationCache, context_of
from autoprune.execution.cluster import Cluster, shipped_packages
from autoprune.execution.driver import Limits, Listener, Record, StudyDriver
from autoprune.execution.fidelity import LR_FRACTION, TunedEvaluator
from autoprune.execution.session import Session
from autoprune.latency.profile import load_profile
from autoprune.network.source import ModelSource
from autoprune.run.directory import (
    RUNGS_FOLDER,
    SCRATCH_FOLDER,
    ModelRecord,
    RunDirectory,
    RunRecord,
    new_folder,
    now,
    versions,
)
from autoprune.run.goals import ACCURACY, other_profiles
from autoprune.run.ladder import uniform_ladder
from autoprune.run.outcome import load_call, write_outcome
from autoprune.run.preparation import Prepared, Say, prepare
from autoprune.run.results import (
    SearchResult,
    chosen_record,
    front_records,
)
from autoprune.run.settings import RunSettings
from autoprune.run.sharing import check_same
from autoprune.run.storage import checked_storage, masked, reason_of, storage_errors, whole_storage
from autoprune.strategy.foreign import absolute_path
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.settings import load_space_settings
from autoprune.tasks.base import Task
from autoprune.tasks.load import absolute_spec
from autoprune.tuning.settings import TuneSettings

#: Where the study keeps test accuracies, so that the test split is used once per network.
TEST_ACCURACY = "test_accuracy"


@dataclasses.dataclass(frozen=True)
class Run:
    """One search: its directory, and everything it stands on.

    Attributes:
        directory: Where everything is written.
        prepared: Model, data, latency and search space.
    """

    directory: RunDirectory
    prepared: Prepared

    @classmethod
    def create(
        cls,
        settings: RunSettings,
        *,
        output: str | os.PathLike[str] | None = None,
        model: nn.Module | None = None,
        task: Task | None = None,
        say: Say,
    ) -> Run:
        """Return a new run, ready to execute; its folder exists and is empty.

        Args:
            settings: Checked settings.
            output: The folder; ``None`` is ``runs/<UTC time>-<model>``.
            model: The model where ``settings.model`` is ``None``.
            task: The task where ``settings.data`` is ``None``.
            say: Hears of oddities that stop nothing.

        Raises:
            AutopruneError: Something named does not exist, fit or meet the budget, or the folder
                cannot be written.
        """
        profile = load_profile(settings.device)
        others = other_profiles(settings.objective, settings.max_latency_ms, profile)
        space = load_space_settings(settings.space)
        described = ModelRecord(name=type(model).__name__, weights_sha256=None)
        if settings.model is not None:
            source = ModelSource.parse(settings.model, weights=settings.weights)
            digest = source.describe()["weights_sha256"]
            described = ModelRecord(name=settings.model, weights_sha256=digest)
            # Files by their absolute path, so that the run can be continued from anywhere.
            weights = None if source.weights is None else str(source.weights)
            settings = settings.model_copy(update={"model": source.spec, "weights": weights})
        settings = settings.model_copy(update={"sampler": absolute_path(settings.sampler)})
        if settings.data is not None:
            settings = settings.model_copy(update={"data": absolute_spec(settings.data)})
        if settings.study_storage is not None:
            storage = checked_storage(settings.study_storage)
            settings = settings.model_copy(update={"study_storage": storage})
        if settings.storage is not None and "://" not in settings.storage:
            storage = str(Path(settings.storage).expanduser().absolute())
            settings = settings.model_copy(update={"storage": storage})
        if settings.cache is not None:
            cache = str(Path(settings.cache).expanduser().absolute())
            settings = settings.model_copy(update={"cache": cache})
        folder = new_folder(output, described.name)
        try:
            prepared = prepare(
                settings, space, profile, others=others, model=model, task=task, say=say
            )
        except BaseException:
            with contextlib.suppress(OSError):  # not empty: then it stays
                folder.rmdir()
                if output is None:
                    folder.parent.rmdir()
            raise
        settings = settings.model_copy(
            update={
                "precision": prepared.numerics.precision,
                "metric": prepared.metric,
                "objective": (ACCURACY, *prepared.problem.goals.costs),
            }
        )
        record = RunRecord(
            created=now(),
            settings=settings,
            model=described,
            space=space,
            profile=profile,
            driver=secrets.token_hex(8),
            profiles=others,
            versions=versions(),
        )
        return cls(RunDirectory(folder, record), prepared)

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        *,
        limits: Mapping[str, Any],
        model: nn.Module | None = None,
        task: Task | None = None,
        say: Say,
    ) -> Run:
        """Return the run in ``path``, ready to go on.

        Args:
            path: The run directory.
            limits: New ``trials``, ``time_limit`` or ``workers``; or ``study_storage``, the same as
                before with its password.
            model: The model where the run was given an object.
            task: The task where the run was given an object.
            say: Hears of oddities that stop nothing.

        Raises:
            AutopruneError: There is no run of this version, its weights have changed, or a limit
                is wrong.
        """
        directory = RunDirectory.open(path)
        record = directory.record
        limits = dict(limits)
        storage = limits.pop("study_storage", None)
        settings = record.settings.with_limits(limits)
        if storage is not None and settings.study_storage is None:
            raise SettingsError(
                "the run's study lies in its own folder; leave --study-storage out, or start a new "
                "run"
            )
        if settings.study_storage is not None:
            whole = whole_storage(settings.study_storage, storage)
            settings = settings.model_copy(update={"study_storage": whole})
        if settings.model is not None:
            source = ModelSource.parse(settings.model, weights=settings.weights)
            if source.describe()["weights_sha256"] != record.model.weights_sha256:
                raise RunError(
                    f"the weights in {settings.weights} have changed since the run began; "
                    "put the old file back, or start a new run"
                )
        prepared = prepare(
            settings,
            record.space,
            record.profile,
            others=record.profiles,
            model=model,
            task=task,
            say=say,
        )
        record = record.model_copy(update={"settings": settings})
        return cls(RunDirectory(directory.path, record), prepared)

    @property
    def load_call(self) -> str:
        """What to type in Python to load the best network."""
        return load_call(self.directory)

    def execute(self, *, listeners: Sequence[Listener] = (), say: Say) -> SearchResult:
        """Search until a limit is reached, write every file, and return what was found.

        Args:
            listeners: Called after every evaluation.
            say: Hears of oddities that stop nothing.

        Raises:
            RunError: The directory cannot be written, another process searches in it, or the
                unpruned network cannot be scored.
        """
        with self.directory.locked():
            self.directory.write_record()
            return execute(self.directory, self.prepared, listeners=listeners, say=say)


def execute(
    directory: RunDirectory,
    prepared: Prepared,
    *,
    listeners: Sequence[Listener] = (),
    say: Say,
) -> SearchResult:
    """Search, or continue to search, and write everything into the run directory.

    Args:
        directory: The run, locked by the caller.
        prepared: What it stands on.
        listeners: Called after every evaluation.
        say: Hears of oddities that stop nothing.

    Raises:
        RunError: The directory cannot be written, or the unpruned network cannot be scored.
    """
    settings, problem = directory.record.settings, prepared.problem
    evaluator = make_evaluator(settings, prepared, directory.path)
    try:
        with quiet_optuna():
            sampler = build_sampler(
                settings.sampler,
                problem,
                seed=settings.seed,
                warm_start=settings.warm_start,
                **settings.sampler_options,
            )
            study = directory.study(sampler, say=say)
            with _session(directory, study, say) as session:
                driver = StudyDriver(
                    study,
                    problem,
                    limits=Limits(settings.trials, seconds=settings.time_limit),
                    listeners=listeners,
                    racing=settings.racing,
                    rungs=len(settings.rungs),
                    session=session,
                )
                scorer = _scorer(settings, evaluator)
                dense = _dense(driver, scorer)
                _search(driver, scorer, directory)
                tested = _test_accuracies(driver, evaluator, say)
                uniform = uniform_ladder(driver, evaluator, say)
            result = write_outcome(
                directory, prepared, evaluator, driver, dense, tested, say, uniform=uniform
            )
    except storage_errors() as error:
        raise RunError(
            f"the run in {directory.path} stopped: {reason_of(error)}; every finished trial is "
            f"kept, continue with `{directory.resume_command}`"
        ) from error
    return result


@contextlib.contextmanager
def _session(directory: RunDirectory, study: optuna.Study, say: Say) -> Iterator[Session | None]:
    """Yield this driver's session where the study is shared, ``None`` where it is the run's own.

    Raises:
        RunError: The study was made for another search.
    """
    record = directory.record
    if record.settings.study_storage is None:
        yield None
        return
    check_same(study, record)
    say(
        f"study {study.study_name!r} in {masked(record.settings.study_storage)} is shared; "
        f"it has {len(study.get_trials(deepcopy=False))} trials"
    )
    with Session(study, record.driver) as session:
        yield session


def make_evaluator(settings: RunSettings, prepared: Prepared, folder: Path) -> Evaluator:
    """Return what scores candidates of a prepared run.

    Args:
        settings: The run's.
        prepared: What it stands on.
        folder: The run directory.

    Raises:
        AutopruneError: Networks are to be trained, and the task or the rungs do not allow it.
    """
    known: dict[str, Any] = {
        "problem": prepared.problem,
        "scores": prepared.problem.scores,
        "calibration_samples": settings.calibration_samples,
        "realise": settings.realise,
        "calibrated": prepared.calibrated,
        "metric": prepared.metric,
        "numerics": prepared.numerics,
    }
    if not settings.rungs:
        return Evaluator(prepared.network, prepared.task, **known)
    return TunedEvaluator(
        prepared.network,
        prepared.task,
        **known,
        rungs=settings.rungs,
        checkpoints=folder.absolute() / RUNGS_FOLDER,
        tuning=TuneSettings(
            lr_fraction=LR_FRACTION,
            # New statistics would undo the repair, which few steps do not make up for.
            statistics="stored",
            precision=prepared.numerics.precision,
            seed=settings.seed,
        ),
    )


def _scorer(settings: RunSettings, evaluator: Evaluator) -> Evaluates:
    """Return the evaluator, behind a cache where one was asked for."""
    if settings.cache is None:
        return evaluator
    context = context_of(
        evaluator,
        calibration_samples=settings.calibration_samples,
        realise=settings.realise,
        metric=evaluator.metric,
        numerics=str(evaluator.numerics),
    )
    return CachedEvaluator(evaluator, EvaluationCache(settings.cache, context))


def _dense(driver: StudyDriver, evaluator: Evaluates) -> Record:
    """Return the unpruned network's record, evaluated once per run."""
    if driver.dense is not None:
        return driver.dense
    evaluation = evaluator(driver.problem.space.dense())
    if evaluation.status != "complete":
        raise RunError(f"the unpruned network cannot be scored: {evaluation.reason}")
    return driver.record_dense(evaluation)


def _search(driver: StudyDriver, evaluator: Evaluates, directory: RunDirectory) -> None:
    settings = directory.record.settings
    if settings.executor == "inline":
        inline.run(driver, evaluator, trial_time_limit=settings.trial_time_limit)
        return
    from autoprune.execution import tune  # ray takes seconds to import

    tune.run(
        driver,
        evaluator,
        workers=settings.workers,
        scratch=directory.path / SCRATCH_FOLDER,
        cluster=_cluster(settings, evaluator),
    )


def _cluster(settings: RunSettings, evaluator: Evaluates) -> Cluster:
    """Return what a run asks of Ray."""
    files: tuple[Path, ...] = ()
    if isinstance(evaluator, CachedEvaluator):
        files, evaluator = (evaluator.cache.path,), evaluator.evaluator
    if isinstance(evaluator, Evaluator):
        files += evaluator.task.files
    packages: tuple[str, ...] = ()
    if settings.ship_package:
        packages = ("autoprune", *shipped_packages([settings.model, settings.data]))
    return Cluster(
        address=settings.ray,
        cpus_per_trial=settings.cpus_per_trial,
        gpus_per_trial=settings.gpus_per_trial,
        storage=settings.storage,
        max_failures=settings.max_failures,
        time_limit_s=settings.trial_time_limit,
        packages=packages,
        files=files,
        loggers=settings.loggers,
    )


def _test_accuracies(driver: StudyDriver, evaluator: Evaluator, say: Say) -> dict[int, float]:
    """Return accuracy on the test split by trial number: the front, the best and the unpruned.

    What an earlier session computed is not computed again.
    """
    stored: Mapping[str, float] = driver.study.user_attrs.get(TEST_ACCURACY, {})
    tested = {int(number): accuracy for number, accuracy in stored.items()}
    goals = driver.problem.goals
    chosen = chosen_record(driver.records, goals)
    reported = [driver.dense, chosen, *front_records(driver.records, goals)]
    for record in reported:
        if record is None or record.number in tested:
            continue
        try:
            network = evaluator.build(record.evaluation.candidate)
            tested[record.number] = evaluator.task.evaluate(network, "test").accuracy
        except Exception as error:  # noqa: BLE001 - a task's own code; the search is not lost
            say(f"no test accuracy for trial {record.number}: {type(error).__name__}: {error}")
    driver.study.set_user_attr(TEST_ACCURACY, {str(n): tested[n] for n in sorted(tested)})
    return tested


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Leave reporting to the listeners, and put Optuna's verbosity back afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
