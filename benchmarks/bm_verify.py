"""Profiles this machine, searches for half the latency, and measures what was found.

`python benchmarks/bm_verify.py` profiles this machine with ONNX Runtime on networks of ResNet-56
and MobileNetV2, searches each for the best network in half the unpruned one's latency, and measures
the front in fp32 and in int8. It writes `benchmarks/results/bm_verify.md` and `.csv`. What lies in
`--work` is not done again: `--only profile` and `--only search` do a part.
"""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path

import pandas as pd
import torch
from common import RESULTS, machine, write_result
from realise_subjects import Subject, load_subject

import autoprune
from autoprune.export.int8 import export_int8, quantised
from autoprune.latency.calibrate import Target
from autoprune.latency.profile import DeviceProfile, Setup, load_profile, save_profile
from autoprune.measure.alignment import alignment_of
from autoprune.measure.backend import open_backend
from autoprune.measure.board import Rounds, device_name, interleaved, onnx_timer, pinned
from autoprune.measure.measuring import Folder, measure
from autoprune.measure.onnx_file import onnx_bytes
from autoprune.measure.outcome import outcome
from autoprune.measure.subjects import Sampler, Source, reference
from autoprune.run.exporting import subjects
from autoprune.run.finished import FinishedRun
from autoprune.run.verify import recalibrate, verify

#: Trials by network.
NETWORKS = {"ResNet-56": 30, "MobileNetV2-1.0": 15}
#: Images that the ranges of int8 are found on.
CALIBRATION = 64


def main() -> None:
    """Do what is asked for."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    remarks: list[str] = []
    for name in options.networks:
        subject = load_subject(name)
        folder = options.work / name
        folder.mkdir(exist_ok=True)
        profile = _profile(subject, folder, options.minutes)
        if options.only == "profile":
            continue
        trials = options.trials or NETWORKS[name]
        run = _searched(subject, profile, folder, options.realise, trials)
        if options.only == "search":
            continue
        finished = FinishedRun.open(run, model=subject.model, task=subject.task, say=print)
        told, lines = _measured(name, subject, finished, profile)
        rows += told
        remarks += lines
    if rows:
        _write(pd.DataFrame(rows), remarks, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--minutes", type=float, default=3.0, help="of profiling, per network")
    parser.add_argument("--realise", default="merge")
    parser.add_argument("--trials", type=int, help="of every network, in place of its usual number")
    parser.add_argument("--only", choices=("profile", "search"))
    parser.add_argument("--work", type=Path, default=Path("runs/verify"))
    return parser.parse_args()


def _profile(subject: Subject, folder: Path, minutes: float) -> DeviceProfile:
    """Return the profile of this machine, measured where it is not there yet."""
    path = folder / "here.yaml"
    if path.exists():
        return load_profile(path)
    backend = open_backend("onnxruntime", threads=1, precision="fp32", clock="auto")
    version = f"onnxruntime_{backend.version()}"
    who = {"device": "here", "runtime": version, "precision": "fp32", "threads": 1}
    measured = Folder(folder / "here.measured", {**who, "clock": backend.clock})
    source = Source(subject.name, subject.model, subject.task.example_inputs())
    alignment = alignment_of(backend, measured)
    laps = Sampler([source], alignment=alignment).laps()
    standing = measure(backend, laps, measured, seconds=60 * minutes, listener=print)
    target = Target(
        name="here",
        device=machine(with_load=False),
        runtime=backend.rules,
        runtime_version=f"{version}, 1 thread, {backend.clock} clock",
        precision="fp32",
        alignment=alignment,
        kind="roofline",
    )
    found = outcome(measured, target, date=datetime.date.today(), failed=standing.failed)
    setup = Setup(machine=device_name(), backend="onnxruntime", threads=1, clock=backend.clock)
    save_profile(found.profile.model_copy(update={"setup": setup}), path)
    return load_profile(path)


def _searched(
    subject: Subject, profile: DeviceProfile, folder: Path, realise: str, trials: int
) -> Path:
    """Return the run with a budget of half the unpruned network's predicted latency."""
    run = folder / "run"
    given = {"model": subject.model, "task": subject.task}
    if not (run / "report.json").exists():
        from autoprune.latency.predict import predictor_for

        ops = subject.network.ops
        predictor = predictor_for(ops, profile)
        dense = float(predictor.predict(ops.full_widths, ops.full_keep)[0])
        autoprune.search(
            **given,
            device=str(folder / "here.yaml"),
            budget_ms=dense / 2,
            trials=trials,
            realise=realise,
            executor="inline",
            search_samples=None,
            output=run,
            say=print,
            listeners=[lambda p: print(f"{p.done}/{p.total}", flush=True)],
        )
    return run


def _measured(
    name: str, subject: Subject, finished: FinishedRun, profile: DeviceProfile
) -> tuple[list[dict[str, object]], list[str]]:
    """Return a row per network of the front, and sentences about them."""
    load = os.getloadavg()[0]
    found = verify(finished, say=print)
    best = finished.results.chosen
    assert best is not None
    int8 = _int8_times(subject, finished, [row.trial for row in found.rows])
    scores = {
        "unpruned": _int8_accuracy(finished, found.rows[0].trial),
        "best": _int8_accuracy(finished, best.trial),
    }
    rows: list[dict[str, object]] = []
    for row in found.rows:
        eight = int8[row.trial]
        chosen = row.trial == best.trial
        score = scores["unpruned" if row.network == "unpruned" else "best"]
        known = chosen or row.network == "unpruned"
        rows.append(
            {
                "network": name,
                "point": row.network + (" (best)" if chosen else ""),
                "accuracy %": f"{100 * row.accuracy:.2f}",
                "predicted ms": f"{row.predicted_ms:.3f}",
                "measured ms": f"{row.measured_ms:.3f}",
                "error %": f"{100 * row.error:+.1f}",
                "speed-up": f"{found.speed_up(row):.2f}",
                "int8 ms": f"{eight:.3f}",
                "int8 speed-up": f"{int8[found.rows[0].trial] / eight:.2f}",
                "fp32/int8": f"{found.rows[0].measured_ms / eight:.2f}",
                "int8 accuracy %": f"{100 * score:.2f}" if known else "",
            }
        )
    outside = sum(row.outside for row in found.rows)
    error = profile.provenance.held_out
    lines = [
        f"{name}: profile of this machine fitted on {profile.provenance.sample_count} networks, "
        f"held-out error {100 * error.mape:.1f} %; budget "
        f"{finished.directory.record.settings.budget_ms:.3f} ms; mean error on the front "
        f"{100 * found.mean_error:.1f} %, {outside} of {len(found.rows)} outside the band of "
        f"±{100 * found.band:.0f} %. Load average before measuring {load:.1f}.",
        _recalibrated(finished, found),
    ]
    return rows, lines


def _recalibrated(finished: FinishedRun, found: object) -> str:
    """Return a sentence on the run by the corrected profile."""
    import shutil

    output = finished.directory.path / "recalibrated"
    shutil.rmtree(output, ignore_errors=True)
    result = recalibrate(finished, found, output=output, say=print)
    best = "none" if result.best is None else f"trial {result.best.trial}"
    return (
        f"Recalibrated on these networks: error {100 * result.device.error:.1f} % on each by the "
        f"others, best {best}, {len(result.points)} networks on the front."
    )


def _int8_times(subject: Subject, finished: FinishedRun, trials: list[int]) -> dict[int, float]:
    """Return milliseconds in 8 bits by trial, all measured in the same rounds."""
    inputs = subject.task.example_inputs()
    real = next(batch for batch, _ in subject.task.calibration(4))
    timers = {}
    with pinned(1):
        for trial in trials:
            content = onnx_bytes(finished.network(trial), inputs, opset=17)
            feeds = [{_input_name(content): x[None].numpy()} for x in real]
            timers[str(trial)] = onnx_timer(
                quantised(content, feeds), provider="CPUExecutionProvider", threads=1, clock="cpu"
            )
        steady = onnx_timer(
            onnx_bytes(*reference()), provider="CPUExecutionProvider", threads=1, clock="cpu"
        )
        found = interleaved(timers, steady, Rounds(count=9, most=19))
    return {int(name): timing.latency_ms for name, timing in found.items.items()}


def _input_name(content: bytes) -> str:
    import onnx

    return str(onnx.load_from_string(content).graph.input[0].name)


def _int8_accuracy(finished: FinishedRun, trial: int) -> float:
    """Return the fraction of the search split that a network gets right in 8 bits."""
    import tempfile

    (subject,) = subjects(
        finished.directory.path,
        pick=str(trial),
        model=finished.prepared.network.model,
        task=finished.prepared.task,
        say=print,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(subject.exportable.onnx[0])
        check = export_int8(
            subject.exportable,
            finished.prepared.task,
            model=path,
            target="onnxruntime",
            calibration_samples=CALIBRATION,
        )
    print(check)
    return check.accuracy


def _write(frame: pd.DataFrame, remarks: list[str], options: argparse.Namespace) -> None:
    frame.to_csv(RESULTS / "bm_verify.csv", index=False)
    path = write_result(
        "bm_verify",
        frame,
        command=f"python benchmarks/bm_verify.py --realise {options.realise} "
        f"--minutes {options.minutes:g}",
        packages=["torch", "onnxruntime"],
    )
    notes = [
        "",
        *[f"- {line}" for line in remarks],
        "- One thread, the thread's own clock, batch 1; each number is the median of interleaved "
        "rounds, a round with a slow reference repeated. speed-up: unpruned over pruned, both in "
        "fp32; int8 speed-up: both in int8; fp32/int8: unpruned in fp32 over this one in int8. "
        "No network was fine-tuned.",
        "- Accuracy is on the search split. ResNet-56 was trained on these images, so its accuracy "
        "there is too good; the ImageNet sample makes networks look up to 17 points too good.",
        "",
    ]
    path.write_text(path.read_text() + "\n".join(notes))
    print("\n".join(notes))


if __name__ == "__main__":
    main()
