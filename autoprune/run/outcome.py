"""Writes what a search found: the best network, the tables and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from autoprune.errors import ExportError
from autoprune.evaluation import Evaluation, Evaluator
from autoprune.execution.driver import Record, StudyDriver
from autoprune.export.onnx import ONNX_FILE, export_onnx
from autoprune.export.package import PackageMetrics, save_package
from autoprune.latency.profile import DeviceProfile
from autoprune.network.inputs import batch_size
from autoprune.network.source import ModelSource
from autoprune.report.data import Command, ProfileFacts, RunFacts, UniformLadder
from autoprune.run.directory import EXPORT_FOLDER, NETWORK_FOLDER, RunDirectory, shown
from autoprune.run.explaining import (
    chosen_network,
    damage_curves,
    dense_memory_mb,
    importance,
    network_layers,
)
from autoprune.run.preparation import Prepared, Say
from autoprune.run.results import (
    Explanation,
    SearchResult,
    chosen_record,
    finetuned_facts,
    front_records,
    report_data,
    result_from,
    unmet,
    write_results,
)

#: Seconds that the importance of parameters may take.
IMPORTANCE_S = 5.0


def write_outcome(
    directory: RunDirectory,
    prepared: Prepared,
    evaluator: Evaluator,
    driver: StudyDriver,
    dense: Record,
    tested: Mapping[int, float],
    say: Say,
    *,
    uniform: UniformLadder | None = None,
) -> SearchResult:
    """Write tables, page and the best network; return the result."""
    settings, record = directory.record.settings, directory.record
    goals = driver.problem.goals
    chosen = chosen_record(driver.records, goals)
    if chosen is not None:
        _write_network(directory, prepared, evaluator, chosen, tested, say)
    size = record.profile.bytes_per_element
    networks = front_records(driver.records, goals)
    if chosen is not None and chosen not in networks:
        networks.append(chosen)
    layers = network_layers(networks, prepared, bytes_per_element=size)
    data = report_data(
        driver.records,
        model_name=record.model.name,
        profile=_profile_facts(record.profile, prepared),
        goals=goals,
        dense=dense,
        chosen=next(
            (
                chosen_network(entry, prepared)
                for entry in layers
                if chosen is not None and entry.trial == chosen.number
            ),
            None,
        ),
        run=RunFacts(
            settings=settings.model_dump(),
            versions=record.versions,
            seed=settings.seed,
            commands=_commands(directory, chosen is not None),
            network_commands=_network_commands(directory),
        ),
        test_accuracy=tested,
        finetuned=finetuned_facts(directory.path),
        explanation=Explanation(
            layers=layers,
            dense_memory_mb=dense_memory_mb(prepared, bytes_per_element=size),
            uniform=uniform,
            damage=damage_curves(driver.problem),
            importance=importance(driver.study, seconds=IMPORTANCE_S),
        ),
    )
    write_results(data, directory.path)
    why = unmet(driver.records, goals)
    return result_from(data, directory.path, driver.stopped, unmet=why)


def package_metrics(
    scores: Evaluation, profile: DeviceProfile, *, test_accuracy: float | None
) -> PackageMetrics:
    """Return what a package's plan says of its network."""
    return PackageMetrics(
        accuracy=scores.accuracy,
        test_accuracy=test_accuracy,
        loss=scores.loss,
        latency_ms=scores.latency_ms,
        latency_error=profile.provenance.held_out.mape,
        profile=profile.name,
        macs=scores.macs,
        params=scores.params,
    )


def _write_network(
    directory: RunDirectory,
    prepared: Prepared,
    evaluator: Evaluator,
    chosen: Record,
    tested: Mapping[int, float],
    say: Say,
) -> None:
    scores, profile = chosen.evaluation, directory.record.profile
    network, plan = evaluator.build(scores.candidate), evaluator.plan(scores.candidate)
    settings = directory.record.settings
    inputs = prepared.task.example_inputs()
    folder = save_package(
        directory.path / NETWORK_FOLDER,
        model=network,
        network=prepared.network,
        plan=plan,
        source=settings.model,
        metrics=package_metrics(scores, profile, test_accuracy=tested.get(chosen.number)),
    )
    metadata = {
        "autoprune.model": directory.record.model.name,
        "autoprune.plan": json.dumps(plan.to_json()),
        "autoprune.profile": profile.name,
    }
    path = folder / ONNX_FILE
    path.unlink(missing_ok=True)  # an older session's network, should this one not export
    try:
        export_onnx(network, inputs, path, metadata=metadata)
    except ExportError as error:
        say(f"no ONNX file: {error}")


def _profile_facts(profile: DeviceProfile, prepared: Prepared) -> ProfileFacts:
    measured = profile.provenance
    return ProfileFacts(
        name=profile.name,
        device=profile.device,
        # Many versions begin with the runtime's name, which is not said twice.
        runtime=profile.runtime_version
        if profile.runtime_version.startswith(profile.runtime)
        else f"{profile.runtime} {profile.runtime_version}",
        precision=profile.precision,
        batch=batch_size(prepared.network.inputs),
        error=measured.held_out.mape,
        error_text=(
            f"mean absolute error on held-out networks ({measured.split}); "
            f"fitted on {measured.sample_count} networks at batch {profile.batch}"
        ),
        provenance=tuple(
            f"{s.repository} {s.file}: {s.measurements} rows" for s in measured.sources
        ),
        notes=tuple(prepared.predictor.notes),
    )


def _commands(directory: RunDirectory, found: bool) -> tuple[Command, ...]:
    """Return what to type next, for the report."""
    settings = directory.record.settings
    more = Command("Search on", f"{directory.resume_command} --trials {2 * settings.trials}")
    if not found:
        return (more,)
    load = f"import autoprune\n\nmodel = {load_call(directory)}"
    return (Command("Load the network in Python", load), more)


def _network_commands(directory: RunDirectory) -> tuple[Command, ...]:
    """Return what to type to get any network of the front, its number written ``{trial}``."""
    run = shown(directory.path)
    folder = directory.path / EXPORT_FOLDER / "{trial}"
    export = f"autoprune export {run} --pick {{trial}} --format"
    return (
        Command("Export as ONNX", f"{export} onnx"),
        Command("Write its weights", f"{export} safetensors"),
        Command(
            "Load these weights in Python",
            f"import autoprune\n\nmodel = {load_call(directory, folder)}",
        ),
        Command("Fine-tune it", f"autoprune finetune {run} --pick {{trial}}"),
    )


def load_call(directory: RunDirectory, folder: Path | None = None) -> str:
    """Return the call that loads a network, as it is typed in Python.

    Args:
        directory: The run.
        folder: Where the network lies; ``None`` is where the run has its best one.
    """
    source = directory.record.settings.model
    arguments = [repr(str(folder or directory.path / NETWORK_FOLDER))]
    if source is None:
        arguments.append("model=your_unpruned_model")
    elif not ModelSource.parse(source).trusted:
        arguments.append("trust_source=True")
    return f"autoprune.load({', '.join(arguments)})"
