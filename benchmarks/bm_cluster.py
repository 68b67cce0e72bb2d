"""Searches on clusters: simulated nodes of Ray, and 256 workers in virtual time.

`python benchmarks/bm_cluster.py` prints and writes `results/bm_cluster.md` and the two CSV files it
is made of. `--nodes` and `--simulate` make one of them; what is not made again is read.

Nodes are those of `ray.cluster_utils.Cluster`: raylets of their own on this machine. An evaluation
sleeps one second, so that they do not compete for its cores; proposals come from the sampler
`random`, the study is a journal file. Efficiency is that of the steady state, from the moment when
all workers have begun an evaluation until too few candidates are left for all: evaluations times
one second, over workers times time. The start (Ray's, and processes that import torch, until the
first evaluation and until all workers evaluate) depends on the machine alone and stands beside.
Ray's workers are not niced here as they are otherwise, so that other processes of the machine do
not keep sleepers from waking; the load average stands beside.

The simulation has no Ray: the driver proposes and records for real and its time is measured, while
evaluations end in virtual time. A worker that waits for the driver waits in virtual time too. Time
is that of the clock, in which the driver also waits for the disk and for other processes of the
machine; the rate by its own processor time stands beside.
Losses and latencies come from a regression on recorded searches of a ResNet-20 (`results/search`).
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import logging
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from common import RESULTS, write_result
from jaxtyping import Bool, Float, Int
from scipy.optimize import nnls

from autoprune.evaluation import Evaluation
from autoprune.execution.driver import Limits, Progress, StudyDriver
from autoprune.run.journal import Journal, JournalFile
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.space import Candidate, Dimension, SearchSpace
from autoprune.tasks.racing import Bar
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

NODES = (1, 2, 4, 8)
SLEEP_S = 1.0
TRIALS_PER_WORKER = 48

WORKERS, TRIALS, WINDOW = 256, 50_000, 2_500
#: Mean of the evaluation times that are simulated, log-normal with a spread of 0.3.
EVALUATION_S = 30.0

RECORDED = RESULTS / "search" / "resnet-20_raspberry_pi_4_ncnn_reconstruct"
NODES_FILE, SIMULATION_FILE = RESULTS / "bm_cluster_nodes.csv", RESULTS / "bm_cluster_driver.csv"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", action="store_true", help="measure the nodes only")
    parser.add_argument("--simulate", action="store_true", help="simulate the driver only")
    parser.add_argument("--trials", type=int, default=TRIALS, help="trials of the simulation")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ.update({"RAY_worker_niceness": "0"})
    if given.nodes or not given.simulate:
        rows: list[dict[str, float]] = []
        for count in NODES:
            rows.append(on_nodes(count))
            print(json.dumps(rows[-1]), flush=True)
            pd.DataFrame(rows).to_csv(NODES_FILE, index=False, float_format="%.4g")
    if given.simulate or not given.nodes:
        simulated(given.trials)
    if NODES_FILE.exists() and SIMULATION_FILE.exists():
        write_page(pd.read_csv(NODES_FILE), pd.read_csv(SIMULATION_FILE))


def driver_of(problem: Problem, folder: Path, *, trials: int, listeners: tuple = ()) -> StudyDriver:
    """Return a driver whose study is a journal in ``folder``."""
    study = optuna.create_study(
        storage=Journal(JournalFile(folder / "study.journal")),
        directions=["minimize", "minimize"],
        sampler=build_sampler("random", problem, seed=0),
    )
    return StudyDriver(study, problem, limits=Limits(trials), listeners=listeners, racing=False)


def memory_mb() -> float:
    """Return the resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


# --- nodes ------------------------------------------------------------------------------------


class SleepingEvaluator(AnalyticEvaluator):
    """Sleeps, and leaves a file per process that has begun."""

    def __init__(self, problem: Problem, folder: Path) -> None:
        """Store parameters."""
        super().__init__(problem, seconds=SLEEP_S)
        self.folder = folder

    def __call__(self, candidate: Candidate, bar: Bar = ()) -> Evaluation:
        """Return the scores of ``candidate``."""
        (self.folder / str(os.getpid())).touch()
        return super().__call__(candidate, bar)


def on_nodes(count: int) -> dict[str, float]:
    """Return what a search on ``count`` nodes of one CPU each took."""
    from ray.cluster_utils import Cluster as Nodes

    from autoprune.execution import tune

    problem = analytic_problem(groups=11, budget_ms=8.0)
    nodes = Nodes(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    try:
        for _ in range(count - 1):
            nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        with tempfile.TemporaryDirectory() as folder:
            trials = TRIALS_PER_WORKER * count
            ends: list[float] = []
            up: list[int] = []  # workers that had begun, at each end
            begun = Path(folder, "workers")
            begun.mkdir()

            def ended(progress: Progress) -> None:
                ends.append(time.perf_counter())
                up.append(len(os.listdir(begun)))

            driver = driver_of(problem, Path(folder), trials=trials, listeners=(ended,))
            began, memory = time.perf_counter(), memory_mb()
            tune.run(
                driver,
                SleepingEvaluator(problem, begun),
                workers=None,
                scratch=Path(folder, "run", "ray"),
                cluster=_joined(nodes.address),
            )
    finally:
        nodes.shutdown()
    failed = [record.evaluation.reason for record in driver.records if not record.complete]
    assert not failed, failed
    assert len(ends) == trials, f"{len(ends)} of {trials} evaluations: {driver.stopped}"
    assert up[-1] == count, f"{up[-1]} of {count} workers came up"
    all_up = up.index(count)
    # Without the start, the evaluations that were running then, and the last round.
    steady = ends[all_up + count : trials - count + 1]
    per_second = (len(steady) - 1) / (steady[-1] - steady[0])
    return {
        "nodes": count,
        "trials": trials,
        "start_s": ends[0] - began - SLEEP_S,
        "all_up_s": ends[all_up] - began - SLEEP_S,
        "steady_trials": len(steady) - 1,
        "trials_per_s": per_second,
        "efficiency": per_second * SLEEP_S / count,
        "overhead_s": count / per_second - SLEEP_S,
        "driver_mb": memory_mb(),
        "driver_grew_mb": memory_mb() - memory,
        "load": os.getloadavg()[0],
    }


def _joined(address: str) -> object:
    from autoprune.execution.cluster import Cluster

    return Cluster(address=address)


# --- the driver in virtual time -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FittedLatency:
    """Latency that is linear in the kept units and blocks, none of which makes it less.

    Attributes:
        base_ms: Of what is never removed.
        groups_ms: Per group at full width.
        blocks_ms: Per block.
        size: Units of each group.
    """

    base_ms: float
    groups_ms: Float[np.ndarray, " groups"]
    blocks_ms: Float[np.ndarray, " blocks"]
    size: int

    def __call__(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return milliseconds per candidate."""
        return self.base_ms + widths / self.size @ self.groups_ms + keep @ self.blocks_ms


class RecordedEvaluator(AnalyticEvaluator):
    """Gives the loss that a regression on recorded trials expects."""

    def __init__(self, problem: Problem, weights: Float[np.ndarray, " features"]) -> None:
        """Store parameters."""
        super().__init__(problem)
        self.weights = weights

    def __call__(self, candidate: Candidate, bar: Bar = ()) -> Evaluation:
        """Return the expected scores of ``candidate``."""
        features = loss_features(np.array([candidate.ratios]), np.array([candidate.dropped]))
        loss = float(np.exp(features @ self.weights)[0])
        evaluation = self._evaluation(candidate, loss=loss, reason="")
        return dataclasses.replace(evaluation, status="complete", accuracy=math.exp(-loss))


def loss_features(
    ratios: Float[np.ndarray, "n groups"], dropped: Bool[np.ndarray, "n blocks"]
) -> Float[np.ndarray, "n features"]:
    """Return what the logarithm of the loss is linear in."""
    return np.hstack([np.ones((len(ratios), 1)), ratios, ratios**2, dropped.astype(float)])


def recorded() -> tuple[Problem, RecordedEvaluator]:
    """Return a problem and its losses as recorded searches have them."""
    trials = pd.concat([pd.read_csv(file) for file in sorted(RECORDED.glob("*.csv"))])
    parts = [text.partition("|") for text in trials["candidate"]]
    ratios = np.array([[float(r) for r in before.split()] for before, _, _ in parts])
    dropped = np.array([[letter == "1" for letter in after] for _, _, after in parts])
    features = loss_features(ratios, dropped)
    ridge = 1e-2 * np.eye(features.shape[1])
    target = np.log(trials["loss"].to_numpy())
    weights = np.linalg.solve(features.T @ features + ridge, features.T @ target)
    kept = np.hstack([np.ones((len(ratios), 1)), 1 - ratios, 1.0 - dropped])
    costs, _ = nnls(kept, trials["latency_ms"].to_numpy())
    groups, size = ratios.shape[1], 64
    latency = FittedLatency(costs[0], costs[1 : groups + 1], costs[groups + 1 :], size)
    space = SearchSpace(
        tuple(Dimension(f"group{index}", size, 8, 4) for index in range(groups)),
        tuple(f"block{index}" for index in range(dropped.shape[1])),
        (True,) * dropped.shape[1],
    )
    problem = Problem(space, latency)
    budget_ms = 0.7 * float(problem.latency_ms([space.dense()])[0])
    problem = dataclasses.replace(problem, budget_ms=budget_ms)
    return problem, RecordedEvaluator(problem, weights)


def simulated(trials: int) -> None:
    """Write what the driver did in each window of trials, window by window."""
    problem, evaluator = recorded()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        driver = driver_of(problem, Path(folder), trials=trials)
        driver.record_dense(evaluator(problem.space.dense()))
        clock = Simulation(driver, evaluator, rng)
        began = memory_mb()
        rows: list[dict[str, float]] = []
        while clock.ended < trials:
            rows.append(
                clock.window(min(WINDOW, trials - clock.ended)) | {"driver_mb": memory_mb()}
            )
            rows[-1]["grew_mb"] = rows[-1]["driver_mb"] - began
            print(json.dumps(rows[-1]), flush=True)
            rows[-1]["load"] = os.getloadavg()[0]
            pd.DataFrame(rows).to_csv(SIMULATION_FILE, index=False, float_format="%.5g")


class Simulation:
    """Workers that evaluate in virtual time what a real driver proposes.

    Attributes:
        ended: Evaluations that have ended.
        now_s: Virtual time.
    """

    def __init__(
        self, driver: StudyDriver, evaluator: RecordedEvaluator, rng: np.random.Generator
    ) -> None:
        """Give every worker its first candidate."""
        self.ended, self.now_s = 0, 0.0
        self._driver, self._evaluator, self._rng = driver, evaluator, rng
        self._running: list[tuple[float, int, Candidate]] = []
        for _ in range(WORKERS):
            self._start()

    def window(self, count: int) -> dict[str, float]:
        """Return rates and use of the workers while ``count`` evaluations end."""
        began_s, busy_s, evaluated_s = self.now_s, 0.0, 0.0
        computed_s = 0.0
        for _ in range(count):
            end_s, number, candidate = heapq.heappop(self._running)
            evaluation = self._evaluator(candidate)
            self.now_s = max(self.now_s, end_s)
            computed_s -= time.process_time()
            started = time.perf_counter()
            self._driver.record(number, evaluation)
            recorded_s = time.perf_counter() - started
            self.now_s += recorded_s
            self.ended += 1
            busy_s += recorded_s
            started = time.perf_counter()
            evaluated_s += self._start()
            busy_s += time.perf_counter() - started
            computed_s += time.process_time()
        elapsed_s = self.now_s - began_s
        return {
            "trials": self.ended,
            "driver_trials_per_s": count / busy_s,
            "driver_trials_per_cpu_s": count / computed_s,
            "workers_take_per_s": WORKERS / EVALUATION_S,
            "workers_busy": evaluated_s / (WORKERS * elapsed_s),
        }

    def _start(self) -> float:
        """Give a worker what the driver proposes; return how long it will take."""
        started = time.perf_counter()
        proposal = self._driver.propose()
        self.now_s += time.perf_counter() - started
        if proposal is None:
            return 0.0
        spread = 0.3
        seconds = EVALUATION_S * float(self._rng.lognormal(-(spread**2) / 2, spread))
        heapq.heappush(self._running, (self.now_s + seconds, proposal.number, proposal.candidate))
        return seconds


def write_page(nodes: pd.DataFrame, driver: pd.DataFrame) -> None:
    """Write the result page from both tables."""
    rows = [
        (
            f"{int(row.nodes)} nodes: efficiency (overhead per trial; first and all workers "
            "up after; driver's memory; load average of the machine)",
            f"{row.efficiency:.1%} ({1000 * row.overhead_s:.0f} ms; {row.start_s:.0f} and "
            f"{row.all_up_s:.0f} s; {row.driver_mb:.0f} MB; {row.load:.1f})",
            ">= 90 % (<= 100 ms)" if row.nodes == max(nodes["nodes"]) else "",
        )
        for row in nodes.itertuples()
    ]
    # The last window has no proposals left for those that end.
    whole = driver[:-1]
    take = driver["workers_take_per_s"].iloc[0]
    slowest = whole["driver_trials_per_s"].min()
    rows += [
        (
            f"trials per second of the driver, {WORKERS} workers and "
            f"{int(driver['trials'].iloc[-1]):,} trials: first, last, least window of {WINDOW:,}",
            f"{whole['driver_trials_per_s'].iloc[0]:.0f}, "
            f"{whole['driver_trials_per_s'].iloc[-1]:.0f}, {slowest:.0f}",
            f">= {take:.1f} (evaluations of {EVALUATION_S:.0f} s)",
        ),
        (
            "the same per second of its processor time",
            f"{whole['driver_trials_per_cpu_s'].iloc[0]:.0f}, "
            f"{whole['driver_trials_per_cpu_s'].iloc[-1]:.0f}, "
            f"{whole['driver_trials_per_cpu_s'].min():.0f}",
            "",
        ),
        (
            "shortest evaluation that the driver's least rate keeps all workers busy with",
            f"{WORKERS / slowest:.1f} s",
            "",
        ),
        ("least share of time that workers evaluate", f"{whole['workers_busy'].min():.1%}", ""),
        ("growth of the driver's memory", f"{driver['grew_mb'].max():.0f} MB", "< 1000 MB"),
    ]
    write_result(
        "bm_cluster",
        pd.DataFrame(rows, columns=["what", "autoprune", "target"]),
        command="python benchmarks/bm_cluster.py",
        packages=["ray", "optuna", "torch"],
    )


if __name__ == "__main__":
    logging.getLogger("ray").setLevel(logging.ERROR)
    main()
