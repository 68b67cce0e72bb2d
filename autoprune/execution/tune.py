"""Evaluates candidates on Ray Tune's workers; the only file that imports ray.

Tune schedules, restarts and ships; what to evaluate and what came out is the study's business. Its
files under the run directory are scratch: they are removed when the search ends, and a run is
resumed from the study alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import PicklingError
from types import ModuleType
from typing import Any, TypeVar

import ray
import torch
from ray import cloudpickle, tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from autoprune.errors import RunError
from autoprune.evaluation import Evaluates, Evaluation
from autoprune.execution.driver import Proposal, StudyDriver
from autoprune.network.factory import file_modules
from autoprune.network.vision import load_torchvision
from autoprune.strategy.space import Candidate
from autoprune.tasks.base import Score
from autoprune.tasks.racing import Bar

T = TypeVar("T")

#: What Tune and Ray read from the environment; the values they had are put back afterwards.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # workers inherit it; one core each
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints its tables whatever the verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a user's task stay valid
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the study is the truth, not Tune's snapshots
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def run(
    driver: StudyDriver,
    evaluator: Evaluates,
    *,
    workers: int,
    scratch: Path,
) -> None:
    """Evaluate what ``driver`` proposes on worker processes until it proposes nothing more.

    A Ray that is already running is used and left running. A worker that dies is started again
    once for the same candidate; if it dies again, the trial has failed.

    Args:
        driver: Proposes candidates and stores evaluations.
        evaluator: Scores one candidate; sent to each worker once.
        workers: Candidates evaluated at the same time, one CPU each.
        scratch: Folder for Tune's own files, removed afterwards.

    Raises:
        RunError: Ray does not start, or the evaluator cannot be sent to a worker.
    """
    environment = _ENVIRONMENT | {"TUNE_MAX_PENDING_TRIALS_PG": str(workers)}
    # Ray reports dead workers on stdout, which belongs to whoever called.
    with _environ(environment), contextlib.redirect_stdout(sys.stderr), _quiet_tune():
        ours = not ray.is_initialized()
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        try:
            if ours:
                _start(workers)
            _search(driver, evaluator, workers, scratch)
        finally:
            if ours:
                ray.shutdown()
            driver.abandon()
            shutil.rmtree(scratch, ignore_errors=True)


def _start(workers: int) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    # A cluster that the environment names has its own CPUs; a local Ray is started with ours.
    local = "RAY_ADDRESS" not in os.environ
    try:
        ray.init(
            num_cpus=workers if local else None,
            include_dashboard=False if local else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (RuntimeError, OSError, ValueError, RayError) as error:
        raise RunError(
            f"Ray did not start: {error}; the executor 'inline' does without it"
        ) from error
    # Ray ends the process on SIGTERM; what a stop means is the caller's to say.
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _search(
    driver: StudyDriver,
    evaluator: Evaluates,
    workers: int,
    scratch: Path,
) -> None:
    searcher = _StudySearcher(driver, evaluator)
    with _file_modules_by_value():
        try:
            reference = ray.put(evaluator)
        except (TypeError, PicklingError) as error:
            # What Ray raised first; its own message fills a page.
            reason = error.__cause__ or error
            raise RunError(
                f"the model or the task cannot be sent to worker processes: {reason}; "
                "take out what cannot be pickled, or use the executor 'inline'"
            ) from error
        # In a list, the reference reaches the workers unopened.
        trainable = tune.with_parameters(
            _Worker, shipped=[reference], torchvision="torchvision" in sys.modules
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(scratch.parent.resolve()),
                verbose=0,
                callbacks=[_Failures(searcher)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
        try:
            tuner.fit()
        finally:
            if searcher.fault is not None:
                raise searcher.fault


class _Worker(tune.Trainable):
    """One long-lived process that evaluates one candidate per Tune trial."""

    def setup(  # type: ignore[override] # tune.with_parameters adds what follows the config
        self, config: dict[str, str], shipped: list[ray.ObjectRef[Evaluates]], torchvision: bool
    ) -> None:
        """Open the evaluator and take the first candidate.

        Args:
            config: The first trial's.
            shipped: A reference to the evaluator.
            torchvision: Whether the evaluator may need torchvision, which not every torch can
                import as it is.
        """
        torch.set_num_threads(1)
        if torchvision:
            load_torchvision()
        self._evaluator: Evaluates = ray.get(shipped[0])
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """Take the next candidate; the process stays."""
        self._candidate, self._bar = _decoded(new_config["proposal"])
        return True

    def step(self) -> dict[str, object]:
        """Return the evaluation as plain values."""
        evaluation = self._evaluator(self._candidate, self._bar)
        return {"evaluation": json.dumps(evaluation.to_json()), "done": True}


class _StudySearcher(Searcher):
    """Hands Tune the driver's proposals and the driver Tune's results.

    Attributes:
        fault: An exception of the driver, which Tune would only have logged.
    """

    def __init__(self, driver: StudyDriver, evaluator: Evaluates) -> None:
        super().__init__()
        self.fault: Exception | None = None
        self._driver, self._evaluator = driver, evaluator
        self._open: dict[str, Proposal] = {}

    def suggest(  # type: ignore[override] # the end is a string, which its annotation leaves out
        self, trial_id: str
    ) -> dict[str, str] | str | None:
        """Return the next candidate as JSON, ``None`` for none now, or that there is no more."""
        proposal = self._guarded(self._driver.propose)
        if proposal is None:
            over = self._driver.stopped or self.fault is not None
            return str(Searcher.FINISHED) if over else None
        self._open[trial_id] = proposal
        return {"proposal": _encoded(proposal)}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record a result; an error is recorded by the callback that knows its text."""
        if result is not None and not error:
            self._record(trial_id, lambda proposal: _evaluation(proposal, result["evaluation"]))

    def on_trial_error(self, trial_id: str, reason: str) -> None:
        """Record a trial whose worker died twice."""
        self._record(trial_id, lambda proposal: self._evaluator.failed(proposal.candidate, reason))

    def _record(self, trial_id: str, result: Callable[[Proposal], Evaluation]) -> None:
        proposal = self._open.pop(trial_id)
        self._guarded(lambda: self._driver.record(proposal.number, result(proposal)))

    def _guarded(self, call: Callable[[], T]) -> T | None:
        """Return what ``call`` returns; its exception ends the search and is raised after it."""
        if self.fault is not None:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - raised again when Tune has wound down
            self.fault = error
            return None

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study is the state."""

    def __getstate__(self) -> dict[str, object]:
        # Tune writes a copy of its settings, and us with them; nothing is ever read from it.
        return {}


class _Failures(tune.Callback):
    """Tells the searcher why a Tune trial failed."""

    def __init__(self, searcher: _StudySearcher) -> None:
        self._searcher = searcher

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: object) -> None:
        """Hand on the first line of the last failure."""
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        lines = [line for line in text.splitlines() if line and not line.startswith("Failure #")]
        # A worker that could not even be made has a traceback, whose last line says why.
        unmade = bool(lines) and "creation task" in lines[0]
        detail = lines[-1 if unmade else 0].strip() if lines else "no detail"
        self._searcher.on_trial_error(trial.trial_id, f"worker died, twice: {detail}")


def _encoded(proposal: Proposal) -> str:
    return json.dumps(
        {
            "ratios": proposal.candidate.ratios,
            "dropped": proposal.candidate.dropped,
            "bar": [dataclasses.astuple(score) for score in proposal.bar],
        }
    )


def _decoded(text: str) -> tuple[Candidate, Bar]:
    values = json.loads(text)
    candidate = Candidate(tuple(values["ratios"]), tuple(values["dropped"]))
    return candidate, tuple(Score(*score) for score in values["bar"])


def _evaluation(proposal: Proposal, text: str) -> Evaluation:
    return Evaluation.from_json(proposal.candidate, json.loads(text))


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
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
