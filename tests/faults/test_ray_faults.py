"""Searches on Ray whose worker, raylet or node is killed while it evaluates.

Each search is a process of its own, this file as a program:

    python test_ray_faults.py FOLDER ADDRESS SAMPLER FAULTS

``FAULTS`` is JSON: of each fault its name and before which evaluation, counted over all processes,
it happens.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.cli.search import stopping_on_signals
from autoprune.execution import inline
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.run.storage import open_storage
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs signals"),
]

#: Seconds that a search, the start of its Ray included, may take.
PATIENCE_S = 240

#: Of the processes that search: their workers are as urgent as they, whatever else runs here.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "RAY_worker_niceness": "0",
}

#: Exit codes of a search: it ended, it was stopped on purpose.
DONE, STOPPED = 0, 4

TRIALS = 8

#: An evaluation is killed long before it would end.
HANGING_S = 600.0


def problem():
    return analytic_problem(budget_ms=3.0)


def driver_of(folder, sampler):
    study = optuna.create_study(
        storage=open_storage(f"journal:{folder / 'study.journal'}", say=print),
        study_name="autoprune",
        directions=["minimize", "minimize"],
        sampler=build_sampler(sampler, problem(), seed=3),
        load_if_exists=True,
    )
    return StudyDriver(study, problem(), limits=Limits(TRIALS))


class Doomed(AnalyticEvaluator):
    """Brings about faults, each once, and notes what began and what ended."""

    def __init__(self, problem, folder, faults):
        super().__init__(problem)
        self.folder, self.faults, self.driver = folder, faults, os.getpid()

    def __call__(self, candidate, bar=()):
        with (self.folder / "begun").open("a+") as file:
            file.seek(0)
            count = len(file.readlines())
            file.write(f"{candidate.key}\n")
        for name, when in self.faults:
            if count >= when and not (self.folder / f"{name}.done").exists():
                (self.folder / f"{name}.done").touch()
                self._meet(name)
        evaluation = super().__call__(candidate, bar)
        with (self.folder / "ended").open("a") as file:
            file.write(f"{candidate.key}\n")
        return evaluation

    def _meet(self, name):
        import psutil

        here = psutil.Process()
        raylet = here.parent()
        assert raylet.name() == "raylet", raylet
        victims = {
            "worker": [here],
            "raylet": [raylet],
            "node": [*(p for p in raylet.children(recursive=True) if p != here), raylet, here],
            "driver": [psutil.Process(self.driver)],
        }
        if name == "terminated":
            os.kill(self.driver, signal.SIGTERM)
        for process in victims.get(name, ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(HANGING_S)


def main():
    from autoprune.execution import tune
    from autoprune.execution.cluster import Cluster

    folder, address, sampler = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    evaluator = Doomed(problem(), folder, json.loads(sys.argv[4]))
    try:
        with stopping_on_signals():
            tune.run(
                driver_of(folder, sampler),
                evaluator,
                workers=1,
                scratch=folder / "ray",
                cluster=Cluster(address=address),
            )
    except KeyboardInterrupt:
        sys.exit(STOPPED)


class Search:
    """A search on Ray with one worker, beside what it is without one and without a fault."""

    def __init__(self, folder, seed):
        self.folder, self.rng = folder / "run", np.random.default_rng(seed)
        self.folder.mkdir()
        self.sampler = str(self.rng.choice(["tpe", "nsga2"]))
        whole = folder / "whole"
        whole.mkdir()
        driver = driver_of(whole, self.sampler)
        inline.run(driver, Doomed(problem(), whole, []))
        self.expected = outcomes(whole)

    def drawn(self, low=0, high=TRIALS):
        """Return a number of evaluations."""
        return int(self.rng.integers(low, high))

    def run(self, *faults, address="local:1"):
        process = subprocess.Popen(
            [
                *(sys.executable, __file__, self.folder),
                *(address, self.sampler, json.dumps(faults)),
            ],
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        print(output)
        for name, _ in faults:
            assert (self.folder / f"{name}.done").exists(), f"no {name} was killed: {output}"
        return process.returncode

    def lines(self, name):
        file = self.folder / name
        return file.read_text().split() if file.exists() else []

    def check(self, before):
        """Compare with the search that nothing happened to.

        Args:
            before: What had ended when the search was resumed.
        """
        after = outcomes(self.folder)
        assert {number: after[number] for number in before} == before
        assert after == self.expected
        assert len(after) == TRIALS
        assert front(after) == front(self.expected)


def outcomes(folder):
    """Return what the journal says of trials that have ended, by number."""
    file = folder / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(file)))
    study = optuna.load_study(study_name=None, storage=storage)
    return {
        t.number: (t.params, t.state, None if t.values is None else tuple(t.values))
        for t in study.trials
        if t.state.is_finished()
    }


def front(outcomes):
    """Return what no other dominates, by brute force."""
    points = [values for _, _, values in outcomes.values()]
    return {
        one
        for one in points
        if not any(two != one and two[0] <= one[0] and two[1] <= one[1] for two in points)
    }


def test_killed_worker_is_replaced_and_nothing_is_lost(tmp_path):
    search = Search(tmp_path, seed=27)
    assert search.run(("worker", search.drawn())) == DONE
    search.check({})
    assert len(search.lines("begun")) == TRIALS + 1  # one was begun twice
    ended = search.lines("ended")
    assert len(ended) == len(set(ended)) == TRIALS


def test_search_whose_raylet_was_killed_is_resumed(tmp_path):
    search = Search(tmp_path, seed=28)
    assert search.run(("raylet", search.drawn())) != DONE
    before = outcomes(search.folder)
    assert len(before) < TRIALS
    known = search.lines("ended")
    assert len(known) >= len(before)

    assert search.run() == DONE
    search.check(before)
    again = search.lines("ended")[len(known) :]
    assert len(again) == len(set(again)) == TRIALS - len(before)  # none that had ended


def test_killed_node_of_a_cluster_is_made_up_for_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    nodes = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    search = Search(tmp_path, seed=29)
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        assert search.run(("node", search.drawn()), address=nodes.address) == DONE
    finally:
        nodes.shutdown()
    search.check({})
    assert len(search.lines("begun")) == TRIALS + 1
    ended = search.lines("ended")
    assert len(ended) == len(set(ended)) == TRIALS


def test_worker_is_killed_and_then_something_else_happens(tmp_path):
    search = Search(tmp_path, seed=30)
    second = str(search.rng.choice(["driver", "terminated"]))
    first = search.drawn(0, TRIALS - 2)
    code = search.run(("worker", first), (second, search.drawn(first + 2, TRIALS + 1)))
    assert code == (-signal.SIGKILL if second == "driver" else STOPPED)
    known, before = search.lines("ended"), outcomes(search.folder)
    assert 0 < len(before) < TRIALS
    journal = search.folder / "study.journal"
    if search.rng.random() < 0.5:  # the machine went down as well
        with journal.open("ab") as file:
            file.write(b'{"op_code":8,"worker')

    assert search.run() == DONE
    search.check(before)
    again = search.lines("ended")[len(known) :]
    assert len(again) == len(set(again)) == TRIALS - len(before)


if __name__ == "__main__":
    main()
