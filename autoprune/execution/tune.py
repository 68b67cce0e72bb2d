"""Evaluates candidates on Ray Tune's workers; beside :mod:`autoprune.execution.ray` all of Ray.

Tune schedules, restarts and ships; what to evaluate and what came out is the study's business. Its
files under the run directory are scratch: they are removed when the search ends, and a run is
resumed from the study alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import PicklingError
from types import ModuleType
from typing import Any

import pyarrow.fs
import ray
from ray import cloudpickle, tune

from autoprune.errors import RunError
from autoprune.evaluation import Evaluates
from autoprune.execution.cluster import Cluster
from autoprune.execution.driver import StudyDriver
from autoprune.execution.ray.connection import connection, is_client
from autoprune.execution.ray.exchange import DriverExchange, Exchange
from autoprune.execution.ray.loggers import make_loggers
from autoprune.execution.ray.relay import Post, RelayedExchange, serve
from autoprune.execution.ray.scheduler import PatientScheduler
from autoprune.execution.ray.searcher import Failures, StudySearcher
from autoprune.execution.ray.worker import Worker
from autoprune.network.factory import file_modules

#: What Tune and Ray read from the environment; the values they had are put back afterwards.
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints its tables whatever the verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a user's task stay valid
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the study is the truth, not Tune's snapshots
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}

#: Seconds between two copies of what loggers wrote to where it is kept.
_KEEP_S = "60"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What Tune is told.

    Attributes:
        cluster: What is asked of Ray.
        workers: Evaluations side by side.
        torchvision: Whether workers load torchvision first.
        folder: Where Tune's own files lie unless they are kept elsewhere.
    """

    cluster: Cluster
    workers: int
    torchvision: bool
    folder: Path

    @property
    def kept(self) -> bool:
        """Whether Tune's files stay when the search has ended."""
        return self.cluster.storage is not None or bool(self.cluster.loggers)

    @property
    def environment(self) -> dict[str, str]:
        """What Tune and Ray read from the environment."""
        return _ENVIRONMENT | {
            "OMP_NUM_THREADS": str(self.cluster.threads),  # workers that start here inherit it
            "TUNE_MAX_PENDING_TRIALS_PG": str(self.workers),
            **({"TUNE_GLOBAL_CHECKPOINT_S": _KEEP_S} if self.kept else {}),
        }


def run(
    driver: StudyDriver,
    evaluator: Evaluates,
    *,
    workers: int | None,
    scratch: Path,
    cluster: Cluster | None = None,
) -> None:
    """Evaluate what ``driver`` proposes on worker processes until it proposes nothing more.

    A Ray that is already running is used and left running. A worker that dies is started again for
    the same candidate; if that happens too often, the trial has failed.

    Args:
        driver: Proposes candidates and stores evaluations.
        evaluator: Scores one candidate; sent to each node once.
        workers: Most candidates evaluated at the same time; ``None`` for as many as fit.
        scratch: Folder for Tune's own files. Removed afterwards, unless a logger writes there.
        cluster: What is asked of Ray; ``None`` for one that is started here.

    Raises:
        RunError: Ray does not start, one of its nodes is not fit for the search, the storage cannot
            be written, or the evaluator cannot be sent to a worker.
    """
    cluster = cluster or Cluster()
    torchvision = "torchvision" in sys.modules
    plan = _Plan(cluster=cluster, workers=workers or 1, torchvision=torchvision, folder=scratch)
    # Ray reports dead workers on stdout, which belongs to whoever called.
    with _environ(plan.environment), contextlib.redirect_stdout(sys.stderr), _quiet_tune():
        if not plan.kept:
            shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        try:
            with connection(cluster, workers) as room:
                side_by_side = min(room, driver.limits.trials)
                _search(driver, evaluator, dataclasses.replace(plan, workers=side_by_side))
        finally:
            driver.abandon()
            if not plan.kept:
                shutil.rmtree(scratch, ignore_errors=True)


def _search(driver: StudyDriver, evaluator: Evaluates, plan: _Plan) -> None:
    exchange = DriverExchange(driver, evaluator)
    reference = _shipped(evaluator)
    try:
        if is_client():
            # Paths of this machine mean nothing where Tune runs.
            plan = dataclasses.replace(
                plan, folder=Path(tempfile.gettempdir(), "autoprune", plan.folder.parent.name)
            )
            post = ray.remote(num_cpus=0)(Post).remote()
            # In a list, the reference reaches the task unopened.
            search = ray.remote(num_cpus=0, max_retries=0)(_fit).remote(
                RelayedExchange(post), [reference], plan
            )
            serve(exchange, post, search)
        else:
            _fit(exchange, [reference], plan)
    finally:
        if exchange.fault is not None:
            raise exchange.fault


def _shipped(evaluator: Evaluates) -> ray.ObjectRef[Evaluates]:
    """Return a reference to the evaluator in the object store."""
    with _file_modules_by_value():
        try:
            return ray.put(evaluator)
        except (TypeError, PicklingError) as error:
            # What Ray raised first; its own message fills a page.
            reason = error.__cause__ or error
            raise RunError(
                f"the model or the task cannot be sent to worker processes: {reason}; "
                "take out what cannot be pickled, or use the executor 'inline'"
            ) from error


def _fit(exchange: Exchange, shipped: list[ray.ObjectRef[Evaluates]], plan: _Plan) -> None:
    """Let Tune evaluate what the exchange has.

    Args:
        exchange: The study.
        shipped: A reference to the evaluator.
        plan: What Tune is told.
    """
    cluster, folder = plan.cluster, plan.folder
    storage, filesystem = _storage(cluster.storage or str(folder.parent.resolve()))
    # In a list, the reference reaches the workers unopened.
    trainable = tune.with_parameters(
        Worker,
        shipped=shipped,
        torchvision=plan.torchvision,
        threads=cluster.threads,
        time_limit_s=cluster.time_limit_s,
    )
    resources = {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial}
    with _environ(plan.environment), _quiet_tune():
        tuner = tune.Tuner(
            tune.with_resources(
                trainable, {k: amount for k, amount in resources.items() if amount}
            ),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(exchange),
                scheduler=PatientScheduler(),
                num_samples=-1,
                max_concurrent_trials=plan.workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                # Of several runs in one storage each has a folder of its own.
                name=folder.name if cluster.storage is None else folder.parent.name,
                storage_path=storage,
                storage_filesystem=filesystem,
                verbose=0,
                callbacks=[
                    Failures(exchange, attempts=cluster.max_failures + 1),
                    *make_loggers(cluster.loggers, folder.parent),
                ],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        tuner.fit()


def _storage(place: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Return a path and the file system that it is on, ``None`` for one that Tune finds itself.

    Args:
        place: A folder, or the address of one in a form that pyarrow or fsspec knows.

    Raises:
        RunError: Neither does.
    """
    scheme, separator, path = place.partition("://")
    if not separator:
        return str(Path(place).expanduser().absolute()), None
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(place)
        return path, filesystem
    except (pyarrow.ArrowInvalid, ValueError):
        pass  # a scheme that pyarrow does not know itself
    except OSError as error:
        raise RunError(f"cannot use the storage {place!r}: {error}") from error
    import fsspec

    try:
        return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (ValueError, ImportError, OSError) as error:
        raise RunError(f"cannot use the storage {place!r}: {error}") from error


@contextlib.contextmanager
def _file_modules_by_value() -> Iterator[None]:
    """Let classes from a user's ``file.py`` travel whole: workers cannot import them by name."""
    register: Callable[[ModuleType], None] = cloudpickle.register_pickle_by_value
    unregister: Callable[[ModuleType], None] = cloudpickle.unregister_pickle_by_value
    modules = file_modules()
    for module in modules:
        register(module)
    try:
        yield
    finally:
        for module in modules:
            unregister(module)


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from logging what the study records anyway, such as failed trials."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _environ(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and put back what was there."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
