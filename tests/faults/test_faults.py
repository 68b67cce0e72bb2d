"""Searches, each with a fault drawn from a seed: nothing is lost, nothing done twice.

Each search runs in a process of its own, forked from this one, and is ended there by what the fault
is; then it is resumed in another.
"""

import ctypes
import dataclasses
import functools
import json
import os
import signal
import subprocess
import time
import traceback
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import autoprune
from autoprune.cli.search import stopping_on_signals
from autoprune.errors import RunError
from autoprune.run import pipeline
from autoprune.run.journal import JournalFile
from autoprune.tasks.base import Score
from autoprune.testing.networks import tiny
from autoprune.testing.tasks import TeacherTask

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs fork")]

TRIALS = 12

#: Exit codes of the process that searches.
DONE, FAULT_TOLD, STOPPED = 0, 3, 4

#: An evaluation takes about a fiftieth of it.
TRIAL_TIME_LIMIT_S = 1.0


class Moody(TeacherTask):
    """Misbehaves for about one candidate in three, always for the same ones.

    Attributes:
        mood: How: ``"raises"``, ``"hangs"``, ``"NaN"``, ``"memory"``, or not at all.
        before_evaluation: Called before every evaluation on the search split.
    """

    def __init__(self, teacher, *, mood=""):
        super().__init__(teacher, shape=(2, 3, 8, 8))
        self.mood = mood
        self.before_evaluation = lambda: None
        self.key = ""

    def evaluate(self, model, split):
        if split == "search":
            self.before_evaluation()
            if self.mood and self.key and int(self.key, 16) % 3 == 0:
                return self._misbehave()
        return super().evaluate(model, split)

    def _misbehave(self):
        if self.mood == "raises":
            raise ValueError("out of luck")
        if self.mood == "hangs":
            time.sleep(60)
        if self.mood == "memory":
            bytearray(1 << 60)
        return Score(float("nan"), 0.5, 64)


class Logged:
    """Notes the key of every candidate whose evaluation has ended."""

    def __init__(self, evaluator, file):
        self.evaluator, self.file = evaluator, file

    def __call__(self, candidate, bar=()):
        task = self.evaluator.task
        task.key = candidate.key if any(candidate.ratios) else ""
        evaluation = self.evaluator(candidate, bar)
        with self.file.open("a") as log:
            log.write(f"{candidate.key}\n")
        return evaluation

    def failed(self, candidate, reason):
        return self.evaluator.failed(candidate, reason)


def ended_by(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def calls_later(calls, action):
    """Return a function that does nothing ``calls`` times, then ``action``."""
    left = [calls]

    def call():
        left[0] -= 1
        if left[0] < 0:
            action()

    return call


def dying_writes(calls, share):
    """Let this process die in its so-and-so-many-th write to the journal, partly written."""
    append = JournalFile._append
    left = [calls]

    def dying(self, lines, *, sync):
        left[0] -= 1
        if left[0] >= 0:
            append(self, lines, sync=sync)
            return
        with self.path.open("ab", buffering=0) as file:
            file.write(lines[: int(share * len(lines))])
        ended_by(signal.SIGKILL)

    JournalFile._append = dying


def dying_results(calls):
    """Let this process die when it puts its so-and-so-many-th file in place."""
    replace, die = os.replace, calls_later(calls, lambda: ended_by(signal.SIGKILL))

    def dying(source, target):
        die()
        replace(source, target)

    os.replace = dying


def fill(folder):
    """Fill the disk that ``folder`` lies on to the last byte."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


class Search:
    """A search that is run, ended and resumed in processes of its own."""

    def __init__(self, folder, board, *, sampler, mood="", seed=0):
        self.folder, self.board, self.sampler = folder, board, sampler
        self.mood, self.seed = mood, seed
        self.log = folder.with_name(f"{folder.name}.log")
        self.log.touch()

    def start(self, fault=lambda task: None):
        return self._in_child(
            fault,
            lambda model, task: autoprune.search(
                model,
                task,
                device=self.board,
                output=self.folder,
                trials=TRIALS,
                sampler=self.sampler,
                seed=self.seed,
                executor="inline",
                precision="fp32",
                trial_time_limit=TRIAL_TIME_LIMIT_S if self.mood == "hangs" else None,
            ),
        )

    def resume(self, fault=lambda task: None):
        return self._in_child(
            fault, lambda model, task: autoprune.resume(self.folder, model=model, task=task)
        )

    def _in_child(self, fault, search):
        process = os.fork()
        if process:
            _, status = os.waitpid(process, 0)
            return os.waitstatus_to_exitcode(status)
        code = 1
        try:
            # Whatever happens here, this process must not go on as if it were the tests'.
            code = self._searched(fault, search)
        except BaseException:  # noqa: BLE001 - printed, and the exit code says so
            traceback.print_exc()
        finally:
            os._exit(code)

    def _searched(self, fault, search):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the tests
        model = tiny("residual").model
        task = Moody(model, mood=self.mood)
        scorer = pipeline._scorer
        pipeline._scorer = lambda *args: Logged(scorer(*args), self.log)
        fault(task)
        try:
            with stopping_on_signals():
                search(model, task)
        except KeyboardInterrupt:
            return STOPPED
        except RunError as error:
            print(error)
            return FAULT_TOLD
        return DONE

    @property
    def journal(self):
        return self.folder / "study.journal"

    def finished(self):
        """Return what the journal's whole lines say of trials that have ended, by number."""
        content = self.journal.read_bytes() if self.journal.exists() else b""
        copy = self.folder.with_name(f"{self.folder.name}.copy")
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        while lines and not is_json(lines[-1]):  # of a machine that crashed
            lines.pop()
        copy.write_bytes(b"".join(lines))
        storage = JournalStorage(JournalFileBackend(str(copy)))
        if not storage.get_all_studies():
            return {}
        study = optuna.load_study(study_name=None, storage=storage)
        return {t.number: outcome(t) for t in study.trials if t.state.is_finished()}

    def evaluated(self):
        return self.log.read_text().splitlines()

    def front(self):
        return (self.folder / "front.csv").read_text()


def is_json(line):
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def outcome(trial):
    values = None if trial.values is None else tuple(trial.values)
    return trial.params, trial.state, values, trial.user_attrs["key"]


@pytest.fixture(scope="module", autouse=True)
def quick(board, tmp_path_factory):
    """Leave the export out, which takes seconds, and import what the processes share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
        )
        model = tiny("residual").model
        autoprune.search(
            model,
            Moody(model),
            device=board,
            trials=TRIALS,
            executor="inline",
            output=tmp_path_factory.mktemp("quick"),
        )
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, board):
    """Returns the search that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")

    @functools.cache
    def made(sampler, mood, seed):
        search = Search(
            folder / f"{sampler}-{mood}-{seed}", board, sampler=sampler, mood=mood, seed=seed
        )
        assert search.start() == DONE
        return search

    return made


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 16 MB."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclasses.dataclass
class Drawn:
    """What a seed decides."""

    seed: int

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.sampler = str(rng.choice(["knapsack", "tpe"]))
        self.evaluations = int(rng.integers(0, TRIALS + 1))  # that end before; 0: the unpruned
        self.writes = int(rng.integers(0, 3 * TRIALS))
        self.files = int(rng.integers(0, 6))  # of the results
        self.share = float(rng.random())
        self.cut = float(rng.random())


def killed_in_evaluation(search, drawn):
    def fault(task):
        task.before_evaluation = calls_later(drawn.evaluations, lambda: ended_by(signal.SIGKILL))

    assert search.start(fault) == -signal.SIGKILL


def killed_in_write(search, drawn):
    assert search.start(lambda task: dying_writes(drawn.writes, drawn.share)) == -signal.SIGKILL


def killed_in_results(search, drawn):
    assert search.start(lambda task: dying_results(1 + drawn.files)) == -signal.SIGKILL


def killed_twice(search, drawn):
    killed_in_write(search, drawn)
    again = Drawn(1000 + drawn.seed)
    code = search.resume(lambda task: dying_writes(again.writes % 20, again.share))
    assert code in (-signal.SIGKILL, DONE)


def journal_truncated(search, drawn):
    killed_in_evaluation(search, drawn)
    size = search.journal.stat().st_size
    os.truncate(search.journal, size - int(drawn.cut * min(size, 4000)))


def machine_crashed(search, drawn):
    killed_in_write(search, drawn)
    with search.journal.open("ab") as file:  # blocks that never reached the disk
        file.write(bytes(4096) + b"\n")
    if not os.path.lexists(f"{search.journal}.lock"):
        os.symlink(search.journal, f"{search.journal}.lock")


def terminated(search, drawn):
    def fault(task):
        task.before_evaluation = calls_later(drawn.evaluations, lambda: ended_by(signal.SIGTERM))

    assert search.start(fault) == STOPPED


def disk_full(search, drawn):
    def fault(task):
        task.before_evaluation = calls_later(drawn.evaluations, lambda: fill(search.folder.parent))

    assert search.start(fault) == FAULT_TOLD
    (search.folder.parent / "ballast").unlink()


CAMPAIGN = [
    *[(killed_in_evaluation, "", seed) for seed in (1, 2, 3)],
    *[(killed_in_write, "", seed) for seed in (4, 5, 6, 7)],
    *[(killed_in_results, "", seed) for seed in (8, 9)],
    *[(killed_twice, "", seed) for seed in (10, 11)],
    *[(journal_truncated, "", seed) for seed in (12, 13, 14)],
    *[(machine_crashed, "", seed) for seed in (15, 16)],
    *[(terminated, "", seed) for seed in (17, 18)],
    (killed_in_write, "raises", 19),
    (terminated, "raises", 20),
    (killed_in_write, "hangs", 21),
    (killed_in_write, "NaN", 22),
    (killed_in_evaluation, "NaN", 23),
    (killed_in_write, "memory", 24),
]


@pytest.mark.parametrize(
    ("fault", "mood", "seed"),
    CAMPAIGN,
    ids=[f"{fault.__name__}-{mood or 'sound'}-{seed}" for fault, mood, seed in CAMPAIGN],
)
def test_search_ends_as_if_nothing_had_happened(fault, mood, seed, unbroken, tmp_path, board):
    drawn = Drawn(seed)
    search = Search(tmp_path / "run", board, sampler=drawn.sampler, mood=mood)
    check(search, fault, drawn, unbroken(drawn.sampler, mood, 0))


@pytest.mark.parametrize("seed", [25, 26])
def test_full_disk_loses_nothing(seed, unbroken, small_disk, board):
    drawn = Drawn(seed)
    folder = small_disk / str(seed)
    folder.mkdir()
    search = Search(folder / "run", board, sampler=drawn.sampler)
    check(search, disk_full, drawn, unbroken(drawn.sampler, "", 0))


def check(search, fault, drawn, whole):
    """End ``search`` by a fault, resume it, and compare with one that nothing happened to."""
    fault(search, drawn)
    before, evaluated = search.finished(), search.evaluated()
    if not (search.folder / "run.json").exists():
        assert not before
        pytest.fail("every search writes what it needs to go on before anything else")

    assert search.resume() == DONE

    after, expected = search.finished(), whole.finished()
    assert {number: after[number] for number in before} == before  # every one is still there
    known = {key for _, _, _, key in before.values()}
    fresh = search.evaluated()[len(evaluated) :]
    assert not known & set(fresh)  # none is evaluated again
    assert len(set(fresh)) == len(fresh)
    assert list(after) == list(range(len(after)))  # none is left open
    assert after == expected  # the same candidates with the same results
    assert search.front() == whole.front()
    trials = pd.read_parquet(search.folder / "trials.parquet")
    assert (trials["reason"].str.contains("same network") == False).sum() == TRIALS + 1  # noqa: E712
    moody = trials["reason"][trials["status"] == "failed"]
    reasons = {
        "raises": "ValueError: out of luck",
        "hangs": "TimeoutError: the evaluation took longer",
        "NaN": "ValueError: the loss is nan",
        "memory": "MemoryError",
    }
    if search.mood:
        assert len(moody)
        assert moody.str.startswith(reasons[search.mood]).all()
    assert not [path for path in Path(search.folder).glob("*.lock")]
