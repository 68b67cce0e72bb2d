"""How long a study of many trials takes to load and to report.

    python benchmarks/bm_store.py --trials 10000 -o benchmarks/results/bm_store.md

A random search with an evaluator that answers at once makes the study, of as many parameters as
ResNet-20 has groups and blocks; then it is loaded and reported as a resumed search does. While it
is made nothing is flushed to the disk, which says nothing about loading.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from unittest import mock

import optuna

from autoprune.execution import inline
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.report.data import RunFacts
from autoprune.run.results import read_results, report_data, write_results
from autoprune.run.storage import open_storage
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem
from autoprune.testing.profiles import made_up_facts

T = TypeVar("T")

GROUPS = 18


def main() -> None:
    """Measure, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--storage", default="journal", choices=["journal", "sqlite"])
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        lines = measured(Path(folder), arguments.trials, arguments.storage)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


def measured(folder: Path, trials: int, kind: str) -> list[str]:
    """Return the lines of a table about a study in ``folder``."""
    problem = analytic_problem(groups=GROUPS, budget_ms=0.6 * GROUPS)
    sampler = optuna.samplers.RandomSampler(seed=0)
    file = folder / "study"
    url = f"journal:{file}" if kind == "journal" else f"sqlite:///{file}"
    rows = []

    def timed(name: str, call: Callable[[], T]) -> T:
        started, computed = time.perf_counter(), time.process_time()
        result = call()
        rows.append((name, time.perf_counter() - started, time.process_time() - computed))
        return result

    def study() -> optuna.Study:
        return optuna.create_study(
            storage=open_storage(url, say=print),
            study_name="autoprune",
            directions=["minimize", "minimize"],
            sampler=sampler,
            load_if_exists=True,
        )

    def search() -> None:
        driver = StudyDriver(study(), problem, limits=Limits(trials))
        driver.record_dense(AnalyticEvaluator(problem)(problem.space.dense()))
        inline.run(driver, AnalyticEvaluator(problem))

    with mock.patch("os.fsync"):
        timed(f"search, {trials} trials", search)
    known = timed("load: Optuna", study)
    driver = timed("load: driver", lambda: StudyDriver(known, problem, limits=Limits(trials)))
    assert driver.dense is not None

    def report() -> None:
        assert driver.dense is not None
        data = report_data(
            driver.records,
            model_name="made up",
            profile=made_up_facts(),
            goals=problem.goals,
            dense=driver.dense,
            chosen=None,
            run=RunFacts(settings={}, versions={}, seed=0),
            test_accuracy={},
        )
        write_results(data, folder)

    timed("report: tables and page", report)
    timed("report: read again", lambda: read_results(folder))
    loading, computing = (sum(row[place] for row in rows[1:]) for place in (1, 2))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        f"# A study of {trials} trials, {GROUPS + 1} parameters, {kind}",
        "",
        f"`python benchmarks/bm_store.py --trials {trials} --storage {kind}` on "
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"optuna {optuna.__version__}.",
        "",
        "| step | seconds | of them computing |",
        "| --- | --- | --- |",
        *(f"| {name} | {seconds:.2f} | {computed:.2f} |" for name, seconds, computed in rows),
        f"| **load and report** | **{loading:.2f}** | **{computing:.2f}** |",
        "",
        f"Storage {file.stat().st_size / 1e6:.1f} MB, report "
        f"{(folder / 'report.html').stat().st_size / 1e6:.1f} MB, peak memory {memory:.0f} MB. "
        f"Load average of the machine {os.getloadavg()[0]:.1f}.",
    ]


if __name__ == "__main__":
    main()
