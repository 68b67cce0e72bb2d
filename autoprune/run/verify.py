"""The front's predicted latencies against measured ones, and the front by a corrected profile."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import MeasureError, RunError
from autoprune.evaluation import Evaluator
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.files import write_atomically
from autoprune.latency.measurements import read_tables
from autoprune.latency.profile import DeviceProfile, Setup, save_profile
from autoprune.latency.recalibrate import Row, recalibrated
from autoprune.latency.samples import Origin
from autoprune.measure.backend import BACKENDS, Backend, open_backend
from autoprune.measure.board import NETWORKS_FILE, device_name, read_rows
from autoprune.measure.measuring import Folder, Standing, measure
from autoprune.measure.subjects import Draw, Subject, first_units, network_subject
from autoprune.network.inputs import batch_size
from autoprune.pruning.surgery import Surgeon
from autoprune.run.directory import RUNGS_FOLDER, RunDirectory, RunRecord, new_folder, now
from autoprune.run.finished import FinishedRun
from autoprune.run.outcome import write_outcome
from autoprune.run.pick import picked_trials
from autoprune.run.pipeline import TEST_ACCURACY, make_evaluator, quiet_optuna
from autoprune.run.preparation import Say, prepare
from autoprune.run.results import SearchResult
from autoprune.strategy.pareto import hypervolume
from autoprune.strategy.space import Candidate

#: What ``verify.json`` calls itself, and its version.
FORMAT, VERSION = "autoprune-verify", 1
VERIFY_FILE, VERIFY_FOLDER = "verify.json", "verify"
RECALIBRATED_FOLDER, PROFILE_FILE = "recalibrated", "profile.yaml"
#: What the unpruned network is called in tables.
UNPRUNED = "unpruned"
#: How many times its mean error a profile may be off before a network is flagged: were errors
#: normal, 95 % of all networks would lie within.
BAND = 2.5
#: Seconds after which no more networks are measured.
SECONDS = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One network, predicted and measured.

    Attributes:
        network: What it is called in tables.
        trial: Number of its trial.
        accuracy: On the search split.
        predicted_ms: By the run's profile.
        measured_ms: Median of the rounds.
        outside: Whether the prediction is off by more than the profile's error band.
    """

    network: str
    trial: int
    accuracy: float
    predicted_ms: float
    measured_ms: float
    outside: bool

    @property
    def error(self) -> float:
        """How far the prediction is off, relative to what was measured."""
        return self.predicted_ms / self.measured_ms - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """The front as predicted and as measured.

    Attributes:
        rows: The unpruned network first, then the front, the fastest first.
        band: Largest relative error that is not flagged.
        profile: Name of the profile.
        device: Who measured, and in what.
        table: The measurements.
        unmeasured: Networks without a measurement.
    """

    rows: tuple[Comparison, ...]
    band: float
    profile: str
    device: str
    table: Path
    unmeasured: tuple[str, ...]

    @property
    def mean_error(self) -> float:
        """Mean of the absolute relative errors."""
        return float(np.mean([abs(row.error) for row in self.rows]))

    def speed_up(self, row: Comparison) -> float | None:
        """Return how many times as fast as the unpruned network one is; ``None`` if unknown."""
        dense = next((r for r in self.rows if r.network == UNPRUNED), None)
        return None if dense is None else dense.measured_ms / row.measured_ms

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``verify.json``."""
        rows = [
            {**dataclasses.asdict(row), "error": row.error, "speed_up": self.speed_up(row)}
            for row in self.rows
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "created": now(),
            "profile": self.profile,
            "device": self.device,
            "band": self.band,
            "mean_error": self.mean_error,
            "table": str(self.table),
            "unmeasured": list(self.unmeasured),
            "networks": rows,
        }


def setup_here(profile: DeviceProfile, *, runtime: str | None = None) -> Setup:
    """Return how networks are measured on this machine to compare with a profile.

    Args:
        profile: The profile of a run.
        runtime: Measure in this runtime, wherever the profile was made; ``None`` asks for a
            profile of this machine.

    Raises:
        UnknownNameError: There is no such runtime.
        MeasureError: The profile is not of this machine, or the runtime fuses otherwise.
    """
    machine, setup = device_name(), profile.setup
    if runtime is not None:
        if BACKENDS[runtime].rules != profile.runtime:
            raise MeasureError(
                f"{runtime} fuses as {BACKENDS[runtime].rules}, the profile {profile.name!r} is of "
                f"{profile.runtime}; they cannot be compared"
            )
        alone = BACKENDS[runtime].on_thread
        return Setup(machine=machine, backend=runtime, threads=1, clock="cpu" if alone else "wall")
    way_out = (
        "measure the device with a kit (`autoprune verify RUN --kit DIR`) and give its table with "
        "--measurements, or measure this machine all the same with --runtime NAME"
    )
    if setup is None:
        raise MeasureError(
            f"the profile {profile.name!r} ({profile.device}) was not made by `autoprune profile`, "
            f"so it is not known to be of this machine; {way_out}"
        )
    if setup.machine != machine:
        raise MeasureError(
            f"the profile {profile.name!r} is of {setup.machine!r}, this machine is {machine!r}; "
            f"{way_out}"
        )
    return setup


def verify(
    finished: FinishedRun,
    *,
    runtime: str | None = None,
    measurements: Path | None = None,
    seconds: float = SECONDS,
    say: Say,
) -> Verification:
    """Return the front's predictions beside measurements, and write both into ``RUN/verify``.

    Args:
        finished: The run.
        runtime: See :func:`setup_here`.
        measurements: A table of networks called ``unpruned`` and ``trial N`` instead of measuring.
        seconds: No network is begun after so long.
        say: Hears what is going on.

    Raises:
        MeasureError: The run's device is another machine, or nothing was measured.
        ProfileError: The table is damaged.
    """
    profile = finished.directory.record.profile
    candidates = _candidates(finished)
    folder = finished.directory.path / VERIFY_FOLDER
    if measurements is None:
        setup = setup_here(profile, runtime=runtime)
        table, device = _measure(finished, candidates, setup, folder, seconds, say)
        measured = {row["network"]: float(row["latency_ms"]) for row in read_rows(table)}
    else:
        table = measurements
        measured, device = _read(table, finished, candidates)
    folder.mkdir(exist_ok=True)
    found = _compared(finished, candidates, measured, table, device)
    write_atomically(folder / VERIFY_FILE, json.dumps(found.to_json(), indent=1) + "\n")
    return found


@dataclasses.dataclass(frozen=True)
class FrontDraws:
    """The unpruned network and the front, to be measured or put into a kit.

    Attributes:
        finished: The run.
    """

    finished: FinishedRun

    def __len__(self) -> int:
        return len(_candidates(self.finished))

    def laps(self) -> Iterator[list[Draw]]:
        """Yield them all, once."""
        network, space = self.finished.prepared.network, self.finished.prepared.problem.space
        surgeon, inputs = Surgeon(network), self.finished.prepared.task.example_inputs()

        def build(name: str, candidate: Candidate) -> Subject:
            module = surgeon.cut(first_units(network, space, candidate)).eval()
            return network_subject(name, module, inputs, role="check")

        yield [
            Draw(name, "network", lambda n=name, t=trial: build(n, self._candidate(t)))  # type: ignore[misc] # defaults bind the loop's values
            for name, trial in _candidates(self.finished).items()
        ]

    def _candidate(self, trial: int) -> Candidate:
        return self.finished.records[trial].evaluation.candidate


def recalibrate(
    finished: FinishedRun, found: Verification, *, output: Path | None = None, say: Say
) -> SearchResult:
    """Return the front by the profile as corrected, and write it as a run directory of its own.

    Every trial gets a new predicted latency. Accuracies are those of the search: nothing is
    evaluated, and networks that are new on the front have no test accuracy.

    Args:
        finished: The run.
        found: Its networks as predicted and measured.
        output: The new directory; ``None`` is ``RUN/recalibrated``.
        say: Hears of oddities that stop nothing.

    Raises:
        ProfileError: Too few networks were measured.
        RunError: The new directory holds something.
        BudgetError: By the corrected profile nothing meets the budget.
    """
    old = finished.directory.record
    rows = [Row(row.network, _parts(finished, row.trial), row.measured_ms) for row in found.rows]
    today = datetime.datetime.now(datetime.UTC).date()
    profile = recalibrated(old.profile, rows, origin=_origin(old.profile, found), date=today)
    folder = new_folder(output or finished.directory.path / RECALIBRATED_FOLDER, old.model.name)
    path = folder / PROFILE_FILE
    comment = f"{old.profile.name}, recalibrated on networks of {finished.directory.path.name}"
    save_profile(profile, path, comment=comment)
    changes = {"device": str(path), "study_storage": None}
    settings = old.settings.model_copy(update=changes)
    task, model = finished.prepared.task, finished.prepared.network.model
    prepared = prepare(settings, old.space, profile, model=model, task=task, say=say)
    record = old.model_copy(update={"settings": settings, "profile": profile, "created": now()})
    directory = RunDirectory(folder, RunRecord.model_validate(record.model_dump(by_alias=True)))
    with directory.locked(), finished.directory.locked(), quiet_optuna():
        directory.write_record()
        weights = finished.directory.path / RUNGS_FOLDER
        if weights.is_dir():  # whoever reads the new run finds the trained weights in it
            shutil.copytree(weights, folder / RUNGS_FOLDER, dirs_exist_ok=True)
        sampler = optuna.samplers.RandomSampler()
        source, study = (d.study(sampler, say=say) for d in (finished.directory, directory))
        tested = source.user_attrs.get(TEST_ACCURACY, {})
        evaluator = make_evaluator(settings, prepared, finished.directory.path)
        for trial in _relabelled(source.get_trials(deepcopy=True), evaluator):
            study.add_trial(trial)
        study.set_user_attr(TEST_ACCURACY, tested)
        driver = StudyDriver(
            study,
            prepared.problem,
            limits=Limits(settings.trials),
            rungs=len(settings.rungs),
        )
        driver.stop(f"latencies of {found.device}; nothing was evaluated")
        if driver.dense is None:
            raise RunError("the run has no unpruned network; search on with --resume first")
        numbers = {int(number): accuracy for number, accuracy in tested.items()}
        return write_outcome(directory, prepared, evaluator, driver, driver.dense, numbers, say)


def _candidates(finished: FinishedRun) -> dict[str, int]:
    """Return trial numbers by the names of the networks, the unpruned one first."""
    dense = next((n for n, record in finished.records.items() if record.dense), None)
    trials = picked_trials(finished.results, "all")
    named = {} if dense is None else {UNPRUNED: dense}
    return named | {f"trial {trial}": trial for trial in trials if trial != dense}


def _measure(
    finished: FinishedRun,
    candidates: Mapping[str, int],
    setup: Setup,
    folder: Path,
    seconds: float,
    say: Say,
) -> tuple[Path, str]:
    """Measure into a new folder, which takes the place of an older one; return table and device."""
    profile = finished.directory.record.profile
    backend: Backend = open_backend(
        setup.backend, threads=setup.threads, precision=profile.precision, clock=setup.clock
    )
    version = f"{setup.backend}_{backend.version()}"
    who = {
        "device": profile.name,
        "runtime": version,
        "precision": profile.precision,
        "threads": setup.threads,
        "clock": setup.clock,
    }
    fresh = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        standing: Standing = measure(
            backend,
            FrontDraws(finished).laps(),
            Folder(fresh, who),
            seconds=seconds,
            listener=lambda s: say(f"measured {s.networks} of {len(candidates)} networks"),
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if standing.noise > backend.rounds.steady:
        say(f"the reference spread by {100 * standing.noise:.0f} %: the machine is busy or hot")
    for name, reason in standing.failed.items():
        say(f"not measured: {name}: {reason}")
    threads = f"{setup.threads} thread{'s' if setup.threads > 1 else ''}"
    return folder / NETWORKS_FILE, f"{setup.machine}, {version}, {threads}, {setup.clock} clock"


def _read(
    path: Path, finished: FinishedRun, candidates: Mapping[str, int]
) -> tuple[dict[str, float], str]:
    """Return milliseconds by network of a table, and who measured them."""
    frame = read_tables([path]).checked().networks
    expected = f"rows are called {', '.join(list(candidates)[:4])}, ..."
    profile, batch = finished.directory.record.profile, batch_size(finished.prepared.network.inputs)
    rows = frame[frame["network"].astype(str).isin(list(candidates))] if len(frame) else frame
    if rows.empty:
        raise MeasureError(
            f"{path} has no network of this run; {expected}; "
            "`autoprune verify RUN --kit DIR` writes a kit that makes such a table"
        )
    wrong = rows[(rows["precision"] != profile.precision) | (rows["batch"] != batch)]
    if len(wrong):
        row = wrong.iloc[0]
        raise MeasureError(
            f"{path} has {row['precision']} at batch {row['batch']:.0f}; the run's profile is of "
            f"{profile.precision}, its batch {batch}"
        )
    sorts = rows[["device", "runtime"]].drop_duplicates()
    if len(sorts) > 1 or rows["network"].duplicated().any():
        raise MeasureError(
            f"{path} has several devices, runtimes or rows of one network; leave one of each"
        )
    measured = dict(zip(rows["network"].astype(str), rows["latency_ms"].astype(float), strict=True))
    return measured, f"{sorts.iloc[0]['device']}, {sorts.iloc[0]['runtime']}"


def _compared(
    finished: FinishedRun,
    candidates: Mapping[str, int],
    measured: Mapping[str, float],
    table: Path,
    device: str,
) -> Verification:
    profile = finished.directory.record.profile
    band = BAND * profile.provenance.held_out.mape
    rows = []
    for name, trial in candidates.items():
        scores = finished.records[trial].evaluation
        if name in measured:
            error = abs(scores.latency_ms / measured[name] - 1)
            rows.append(
                Comparison(
                    network=name,
                    trial=trial,
                    accuracy=scores.accuracy,
                    predicted_ms=scores.latency_ms,
                    measured_ms=measured[name],
                    outside=error > band,
                )
            )
    if not rows:
        raise MeasureError("no network was measured; give more time with --minutes")
    return Verification(
        rows=tuple(rows),
        band=band,
        profile=profile.name,
        device=device,
        table=table,
        unmeasured=tuple(name for name in candidates if name not in measured),
    )


def _parts(finished: FinishedRun, trial: int) -> dict[str, float]:
    """Return a network's predicted milliseconds by kernel family."""
    space, predictor = finished.prepared.problem.space, finished.prepared.predictor
    candidate = finished.records[trial].evaluation.candidate
    widths, keep = space.network_widths(space.widths([candidate])), space.keep([candidate])
    parts: dict[str, float] = defaultdict(float)
    for _, family, milliseconds in predictor.breakdown(widths[0], keep[0]):
        parts[family] += milliseconds
    return dict(parts)


def _origin(profile: DeviceProfile, found: Verification) -> Origin:
    digest = hashlib.sha256(found.table.read_bytes()).hexdigest()[:12]
    return Origin(
        "own measurements",
        found.table.name,
        found.device,
        profile.runtime,
        f"sha256:{digest}",
        "unpublished",
    )


def _relabelled(trials: Sequence[FrozenTrial], evaluator: Evaluator) -> list[FrozenTrial]:
    """Return trials with the latencies of the evaluator's problem, by number.

    Trials that never ended count as failed.
    """
    problem = evaluator.problem
    space, names = problem.space, problem.space.distributions().keys()
    whole = [trial for trial in trials if names <= trial.params.keys()]
    candidates = [space.snap(space.candidate(trial.params)) for trial in whole]
    latencies = dict(zip([t.number for t in whole], problem.latency_ms(candidates), strict=True))
    ended = sorted(trials, key=lambda t: (t.datetime_complete is None, t.datetime_complete))
    top, reached = 0, list[tuple[float, float]]()
    for trial in ended:
        if not trial.state.is_finished():
            trial.state, trial.values = TrialState.FAIL, None
        if trial.number not in latencies:
            continue
        latency = float(latencies[trial.number])
        if trial.state == TrialState.COMPLETE:
            trial.values = [trial.values[0], latency]
            rung = trial.user_attrs.get("rung", 0)
            if rung > top:  # scores of different rungs are not compared
                top, reached = rung, []
            if rung == top and not trial.user_attrs.get("screened"):
                reached.append((trial.user_attrs["accuracy"], latency))
        accuracy, times = np.array(reached, float).reshape(-1, 2).T
        trial.user_attrs = {
            **trial.user_attrs,
            "latency_ms": latency,
            "hypervolume": hypervolume(accuracy, times, dense_ms=problem.dense_ms),
        }
    return sorted(trials, key=lambda trial: trial.number)
