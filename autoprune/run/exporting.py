"""Finished networks as files for other runtimes, each compared with PyTorch on real inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoprune.errors import AutopruneError, ExportError
from autoprune.export.format import FORMATS, Exportable, Exported, Format
from autoprune.export.int8 import Int8Check, Target, export_int8
from autoprune.export.onnx import ONNX_FILE
from autoprune.export.package import PLAN_FILE, copy_package, load, read_package, save_package
from autoprune.files import write_atomically
from autoprune.network.inputs import Inputs, batch_size
from autoprune.run.directory import EXPORT_FOLDER, FINETUNED_FOLDER, RECORD_FILE, RunDirectory, now
from autoprune.run.finished import FinishedRun
from autoprune.run.pick import picked_trials
from autoprune.run.preparation import Say, task_of
from autoprune.tasks.base import SampledTask, Task
from autoprune.tasks.load import load_task
from autoprune.version import __version__

#: What ``export.json`` calls itself, and its version.
FORMAT, VERSION = "autoprune-export", 1
EXPORT_FILE = "export.json"
#: Samples that exports are compared on, and training samples that int8 is calibrated on.
COMPARED, CALIBRATION = 8, 128
#: What quantised files are called among the exports.
_INT8_NAMES: dict[Target, str] = {"onnxruntime": "int8", "tensorrt": "int8-tensorrt"}
#: How far above a package its run may lie.
_LEVELS = 3
_PACKAGES = ("torch", "onnx", "onnxruntime")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network to export.

    Attributes:
        name: Its trial, or the folder it lies in.
        exportable: The network with what its exports need.
        task: Where its data come from; ``None`` where nothing names it.
        folder: Where its exports go unless told otherwise.
        facts: What ``export.json`` says of it.
    """

    name: str
    exportable: Exportable
    task: Task | None
    folder: Path
    facts: dict[str, Any]


def subjects(
    path: str | os.PathLike[str],
    *,
    pick: str | None = None,
    data: str | None = None,
    dynamic_batch: bool = True,
    trust_source: bool = False,
    model: nn.Module | None = None,
    task: Task | None = None,
    say: Say,
) -> Iterator[Subject]:
    """Yield the networks to export.

    Args:
        path: A run directory, or the folder of a network.
        pick: Which networks of a run, see :func:`~autoprune.run.pick.picked_trials`.
        data: The task of a network's folder, where it lies in no run.
        dynamic_batch: Leave the batch size open; otherwise it is the deployment batch.
        trust_source: Run the Python code that a network's folder names.
        model: The unpruned model where it was given as an object.
        task: The task where it was given as an object.
        say: Hears of oddities that stop nothing.

    Raises:
        AutopruneError: There is nothing of that kind, or something it names is gone.
    """
    folder = Path(path)
    if (folder / PLAN_FILE).is_file():
        if pick is not None:
            raise ExportError(f"{folder} is one network; --pick takes one of a run directory")
        task = task or _task_of_package(folder, data)
        yield _of_package(folder, task, dynamic_batch, model=model, trust_source=trust_source)
        return
    if data is not None:
        raise ExportError("a run has its own data; --data goes with the folder of a network")
    finished = FinishedRun.open(folder, model=model, task=task, say=say)
    for trial in picked_trials(finished.results, pick):
        tuned = finished.directory.path / FINETUNED_FOLDER / str(trial)
        if (tuned / PLAN_FILE).is_file():
            say(
                f"trial {trial} is exported as the search left it; for the fine-tuned network: "
                f"autoprune export {tuned}"
            )
        yield _of_trial(finished, trial, dynamic_batch)


def export(
    subject: Subject,
    formats: Sequence[str],
    *,
    folder: Path | None = None,
    int8: bool = False,
    calibration_samples: int = CALIBRATION,
    say: Say,
) -> dict[str, Any]:
    """Write a network in several formats, and return the content of ``export.json`` beside them.

    Formats of an earlier call that this one does not write stay listed. Where one cannot be
    written, the others are.

    Args:
        subject: The network.
        formats: Names of :data:`~autoprune.export.format.FORMATS`.
        folder: Where the files go; ``None`` is the subject's own folder.
        int8: Write a quantised ONNX file as well: for ONNX Runtime, and for TensorRT where its
            script is asked for.
        calibration_samples: Training samples that the quantised file is calibrated on.
        say: Hears what is being done.

    Raises:
        UnknownNameError: There is no such format.
        ExportError: A format lacks its package, or could not be written.
    """
    # What is quantised is the ONNX file.
    writers = _writers([*formats, "onnx"] if int8 else formats)
    if int8 and subject.task is None:
        raise ExportError("--int8 calibrates and scores on data; name them with --data")
    target = folder or subject.folder
    target.mkdir(parents=True, exist_ok=True)
    entries, faults = _kept(target), []

    def attempt(name: str, write: Any) -> None:
        say(f"writing {name}")
        try:
            entries[name] = write()
        except AutopruneError as error:
            entries.pop(name, None)
            faults.append(f"{name}: {error}")

    for writer in writers:
        attempt(writer.name, lambda w=writer: _plain(w.write(subject.exportable, target), subject))
    for kind in _targets(formats) if int8 and "onnx" in entries else ():
        attempt(
            _INT8_NAMES[kind],
            lambda k=kind: _int8(subject, target, k, calibration_samples),
        )
    content = _content(subject, target, entries)
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(target / EXPORT_FILE, text + "\n")
    if faults:
        raise ExportError("; ".join(faults))
    written: dict[str, Any] = json.loads(text)
    return written


def _writers(formats: Sequence[str]) -> list[Format]:
    """Return the formats, all of them there."""
    kinds = [FORMATS[name] for name in dict.fromkeys(formats)]
    lacking = [f"{kind.name}: {way}" for kind in kinds if (way := kind.missing()) is not None]
    if lacking:
        raise ExportError(f"this machine lacks what some formats need: {'; '.join(lacking)}")
    return [kind() for kind in kinds]


def _targets(formats: Sequence[str]) -> tuple[Target, ...]:
    return ("onnxruntime", "tensorrt") if "tensorrt-script" in formats else ("onnxruntime",)


def _plain(written: Exported, subject: Subject) -> dict[str, Any]:
    """Return one export as ``export.json`` has it."""
    values = dataclasses.asdict(written)
    del values["format"]
    compared = written.max_abs_difference is not None
    return values | {"tolerance": subject.exportable.tolerance if compared else None}


def _int8(subject: Subject, target: Path, kind: Target, samples: int) -> dict[str, Any]:
    assert subject.task is not None
    check: Int8Check = export_int8(
        subject.exportable,
        subject.task,
        model=target / ONNX_FILE,
        target=kind,
        calibration_samples=samples,
    )
    values = dataclasses.asdict(check)
    return {
        "files": [values.pop("file")],
        "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        **values,
    }


def _content(subject: Subject, folder: Path, entries: dict[str, Any]) -> dict[str, Any]:
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    listed = {
        name: {**entry, "files": _described(entry, folder)} for name, entry in entries.items()
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": now(),
        "network": subject.facts,
        "compared_on": subject.exportable.compared_on,
        "exports": listed,
        "versions": {"autoprune": __version__, **packages},
    }


def _described(entry: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return name, size and hash of an export's files."""
    names = [file["name"] if isinstance(file, dict) else file for file in entry["files"]]
    return [
        {
            "name": name,
            "size_bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in names
        if (folder / name).is_file()
    ]


def _kept(folder: Path) -> dict[str, Any]:
    """Return what an earlier call wrote into a folder."""
    file = folder / EXPORT_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = (content["format"], content["version"]) == (FORMAT, VERSION)
        return dict(content["exports"]) if known else {}
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{file} is damaged ({error!r}); delete it and export again") from None


def _of_trial(finished: FinishedRun, trial: int, dynamic_batch: bool) -> Subject:
    record, prepared = finished.directory.record, finished.prepared
    plan, metrics = finished.plan(trial), finished.metrics(trial)
    network = finished.network(trial)

    def save(folder: Path) -> object:
        return save_package(
            folder,
            model=network,
            network=prepared.network,
            plan=plan,
            source=record.settings.model,
            metrics=metrics,
        )

    inputs, compared_on = _real_inputs(prepared.task, dynamic_batch)
    return Subject(
        name=str(trial),
        exportable=Exportable(
            model=network,
            inputs=inputs,
            compared_on=compared_on,
            metadata={
                "autoprune.model": record.model.name,
                "autoprune.plan": json.dumps(plan.to_json()),
                "autoprune.profile": record.profile.name,
            },
            save=save,
            # The run was the user's, and so was the code it named.
            reload=lambda folder: load(folder, prepared.network.model, trust_source=True),
            batch=batch_size(prepared.network.inputs),
            dynamic_batch=dynamic_batch,
        ),
        task=prepared.task,
        folder=finished.directory.path / EXPORT_FOLDER / str(trial),
        facts={"trial": trial, "model": record.model.name, **metrics.model_dump()},
    )


def _of_package(
    folder: Path,
    task: Task | None,
    dynamic_batch: bool,
    *,
    model: nn.Module | None,
    trust_source: bool,
) -> Subject:
    package = read_package(folder)
    if task is None:
        inputs: Inputs = package.example_inputs()
        compared_on = "random numbers of the form of the recorded inputs"
    else:
        inputs, compared_on = _real_inputs(task, dynamic_batch)

    def reload(place: Path) -> nn.Module:
        return load(place, model, trust_source=trust_source)

    name = package.source or "given as an object"
    return Subject(
        name=folder.name,
        exportable=Exportable(
            model=reload(folder),
            inputs=inputs,
            compared_on=compared_on,
            metadata={
                "autoprune.model": name,
                "autoprune.plan": json.dumps(package.plan),
                "autoprune.profile": package.metrics.profile,
            },
            save=lambda target: copy_package(folder, target),
            reload=reload,
            batch=batch_size(package.example_inputs()),
            dynamic_batch=dynamic_batch,
        ),
        task=task,
        folder=folder / EXPORT_FOLDER,
        facts={"trial": None, "model": name, **package.metrics.model_dump()},
    )


def _task_of_package(folder: Path, data: str | None) -> Task | None:
    """Return the task that is named, or that of the run the package lies in, if any."""
    if data is not None:
        return load_task(data)
    for parent in list(folder.absolute().parents)[:_LEVELS]:
        if (parent / RECORD_FILE).is_file():
            settings = RunDirectory.open(parent).record.settings
            return None if settings.data is None else task_of(settings)
    return None


def _real_inputs(task: Task, dynamic_batch: bool) -> tuple[tuple[Tensor, ...], str]:
    """Return inputs that exports are compared on, and what they are in words."""
    if not dynamic_batch:
        given = task.example_inputs()
        return given, f"a deployment batch of {len(given[0])} training samples of {task.name}"
    if isinstance(task, SampledTask):
        count = min(COMPARED, task.samples("search"))
        inputs, _ = next(iter(task.batches("search", 0, count)))
        return (inputs,), f"{len(inputs)} samples of the search split of {task.name}"
    inputs, _ = task.calibration(COMPARED)[0]
    return (inputs,), f"{len(inputs)} training samples of {task.name}"
