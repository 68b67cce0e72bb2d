"""Searches on a Ray that runs by itself: through its client, and as a job of its job server."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from autoprune.execution import inline
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

pytestmark = [pytest.mark.ray, pytest.mark.slow]

#: Seconds that a head node, and a job on it, may take.
PATIENCE_S = 180


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Ports of client and job server of a head node with two CPUs, and its environment."""
    pytest.importorskip("grpc", reason="ray[client,default] is not installed")
    gcs, client, jobs = free_ports(3)
    # Ray wants short paths, and every process that speaks to it the same token.
    folder = tmp_path_factory.mktemp("head")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | token | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
    command += [f"--port={gcs}", f"--ray-client-server-port={client}", "--num-cpus=2"]
    command += [
        "--include-dashboard=true",
        f"--dashboard-port={jobs}",
        "--node-ip-address=127.0.0.1",
    ]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        for port in (client, jobs):
            wait_for(port, process, folder / "head.log")
        yield client, jobs, environment
    finally:
        process.terminate()  # it ends the processes it started
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


def wait_for(port, process, log):
    for _ in range(2 * PATIENCE_S):
        assert process.poll() is None, log.read_text()
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text())


CLIENT = """
import sys
from pathlib import Path
from autoprune.execution import tune
from autoprune.execution.cluster import Cluster
sys.path.insert(0, {here!r})
from test_cluster_run import driver_for
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

problem = analytic_problem(budget_ms=3.0)
driver = driver_for(problem)
cluster = Cluster(address="ray://127.0.0.1:{port}")
tune.run(
    driver, AnalyticEvaluator(problem), workers=1, scratch=Path({folder!r}, "ray"), cluster=cluster
)
print([record.evaluation.loss for record in driver.records], driver.stopped)
"""


def driver_for(problem):
    sampler = build_sampler("tpe", problem, seed=1)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    return StudyDriver(study, problem, limits=Limits(trials=6))


def test_study_stays_here_while_tune_runs_on_the_cluster(head, tmp_path):
    port, _, environment = head
    problem = analytic_problem(budget_ms=3.0)
    here = driver_for(problem)
    inline.run(here, AnalyticEvaluator(problem))

    # In a process of its own: this one may have joined another Ray.
    code = CLIENT.format(here=str(Path(__file__).parent), port=port, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    losses = [record.evaluation.loss for record in here.records]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{losses} {here.stopped}"


def test_search_runs_as_a_job(head, tmp_path):
    _, port, environment = head
    command = Path(sys.executable).parent
    # A head node answers before the agent that starts its jobs is up.
    for _ in range(20):
        done = subprocess.run(
            [
                *(command / "ray", "job", "submit", "--address", f"http://127.0.0.1:{port}", "--"),
                *(sys.executable, "-m", "autoprune.cli.main", "search", "--device", "jetson"),
                *("--trials", "2", "--sampler", "random", "--realise", "slice", "--json"),
                *("--output", str(tmp_path / "run")),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if done.returncode == 0 or (tmp_path / "run").exists():
            break
        time.sleep(1)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert (tmp_path / "run" / "front.csv").exists()
    assert '"stopped": "all 2 trials are done"' in done.stdout
