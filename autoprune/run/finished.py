"""A search that has ended, opened again: its results, and any of its networks built anew."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import optuna
from torch import nn

from autoprune.evaluation import Evaluator
from autoprune.execution.driver import Record, read_records
from autoprune.export.package import PackageMetrics
from autoprune.pruning.plan import PruningPlan
from autoprune.report.data import ReportData
from autoprune.run.directory import JOURNAL_FILE, RunDirectory
from autoprune.run.outcome import package_metrics
from autoprune.run.pipeline import Run, make_evaluator, quiet_optuna
from autoprune.run.preparation import Prepared, Say
from autoprune.run.results import read_results
from autoprune.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run directory with what its search found and stands on.

    Attributes:
        run: Directory, model, data, latency and search space.
        results: The tables.
        records: Every trial by its number.
    """

    run: Run
    results: ReportData
    records: Mapping[int, Record]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        task: Task | None = None,
        say: Say,
    ) -> FinishedRun:
        """Return the finished search in ``path``; its results are left as they are.

        Args:
            path: The run directory.
            model: The model where the search was given an object.
            task: The task where the search was given an object.
            say: Hears of oddities that stop nothing.

        Raises:
            AutopruneError: There is no finished search, or something that it names is gone.
        """
        results = read_results(RunDirectory.open(path).path)
        run = Run.resume(path, limits={}, model=model, task=task, say=say)
        records = _records(run, say)
        return cls(run, results, {record.number: record for record in records})

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        return self.run.directory

    @property
    def prepared(self) -> Prepared:
        """Model, data, latency and search space."""
        return self.run.prepared

    @cached_property
    def evaluator(self) -> Evaluator:
        """What builds and scores networks, as the search did."""
        return make_evaluator(self.directory.record.settings, self.prepared, self.directory.path)

    def plan(self, trial: int) -> PruningPlan:
        """Return how a trial's network is cut."""
        return self.evaluator.plan(self.records[trial].evaluation.candidate)

    def network(self, trial: int) -> nn.Module:
        """Return a trial's network, realised as in the search."""
        return self.evaluator.build(self.records[trial].evaluation.candidate)

    def metrics(self, trial: int) -> PackageMetrics:
        """Return what the search knows of a trial's network."""
        scores, profile = self.records[trial].evaluation, self.directory.record.profile
        table = self.results.trials.set_index("number")["test_accuracy"]
        tested = float(table[trial])
        known = None if tested != tested else tested
        return package_metrics(scores, profile, test_accuracy=known)


def _records(run: Run, say: Say) -> list[Record]:
    """Return every trial of a run; a study that lies in its folder is read from a copy.

    Opening a study adds to it, and several processes may open a run at once.
    """
    directory, space = run.directory, run.prepared.problem.space
    with tempfile.TemporaryDirectory() as folder, quiet_optuna():
        if directory.record.settings.study_storage is None:
            shutil.copy(directory.path / JOURNAL_FILE, folder)
            directory = RunDirectory(Path(folder), directory.record)
        return read_records(directory.study(optuna.samplers.RandomSampler(), say=say), space)
