"""Two drivers in two processes on one PostgreSQL study: no candidate twice, none lost."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autoprune.run.storage import open_storage

pytestmark = pytest.mark.slow

TRIALS = 100

#: Searches 100 candidates on a shared study; prints the keys of those that it evaluated.
DRIVER = f"""
import sys
import tempfile
import optuna
from autoprune.execution import inline
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.execution.session import Session
from autoprune.run.storage import open_storage
from autoprune.strategy.registry import build_sampler
from autoprune.testing.evaluators import AnalyticEvaluator, analytic_problem

url, name = sys.argv[1:]
optuna.logging.set_verbosity(optuna.logging.WARNING)
problem = analytic_problem(budget_ms=3.0)
evaluator = AnalyticEvaluator(problem, seconds=0.01)
study = optuna.create_study(
    storage=open_storage(url, say=print), study_name="shared", load_if_exists=True,
    directions=["minimize", "minimize"], sampler=build_sampler("random", problem, seed=0),
)
print("ready", flush=True)
sys.stdin.readline()  # both begin at the same moment
with Session(study, name) as session:
    driver = StudyDriver(study, problem, limits=Limits({TRIALS}), session=session)
    inline.run(driver, evaluator)
print(*evaluator.calls)
"""


def binaries():
    """Return the folder of PostgreSQL's programs, ``None`` where there are none."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return debian[-1].parent if debian else None


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def postgresql():
    """URL of a database on this machine, which ends with the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: the extra 'postgresql'")
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    # Not below pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="autoprune-postgresql-"))
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = "postgres" if "postgres" in {u.pw_name for u in pwd.getpwall()} else "nobody"
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()

    def run(program, *arguments):
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=folder,
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    run("initdb", "-D", str(data), "-U", "ann", "-A", "trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k '' -c fsync=off"
    # Its log goes to a file: nothing of it holds a pipe of ours open.
    run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql://ann:unused@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", str(data), "-w", "-m", "fast", "stop")
    shutil.rmtree(folder)


def test_two_drivers_evaluate_each_candidate_once(postgresql):
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, postgresql, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    try:
        assert [driver.stdout.readline() for driver in drivers] == ["ready\n"] * 2
        for driver in drivers:
            driver.stdin.write("\n")
            driver.stdin.flush()
        evaluated = [driver.communicate(timeout=240)[0].split() for driver in drivers]
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()
    assert [driver.returncode for driver in drivers] == [0, 0]

    storage = open_storage(postgresql, say=print)
    trials = optuna.load_study(storage=storage, study_name="shared").trials
    storage._backend.engine.dispose()
    idle = {"withdrawn", "duplicate_of"}
    counted = [t for t in trials if not idle & t.user_attrs.keys()]
    assert Counter(t.state for t in counted) == {TrialState.COMPLETE: TRIALS}
    assert len({str(t.params) for t in counted}) == TRIALS  # no duplicate
    assert {t.user_attrs["key"] for t in counted} == set(evaluated[0] + evaluated[1])
    assert len(evaluated[0] + evaluated[1]) == TRIALS
    assert min(map(len, evaluated)) > 0  # both had their part
    assert all(t.state.is_finished() for t in trials)
