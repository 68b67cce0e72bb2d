"""Writes what a search found: the best network, the tables and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping

from autoprune.errors import ExportError
from autoprune.evaluation import Evaluation, Evaluator
from autoprune.execution.driver import Record, StudyDriver
from autoprune.export.onnx import ONNX_FILE, export_onnx
from autoprune.export.package import PackageMetrics, save_package
from autoprune.latency.profile import DeviceProfile
from autoprune.network.inputs import batch_size
from autoprune.network.source import ModelSource
from autoprune.report.data import (
    ChosenNetwork,
    Command,
    GroupWidth,
    KernelTime,
    ProfileFacts,
    RunFacts,
)
from autoprune.run.directory import NETWORK_FOLDER, RunDirectory
from autoprune.run.preparation import Prepared, Say
from autoprune.run.results import (
    SearchResult,
    chosen_record,
    finetuned_facts,
    report_data,
    result_from,
    unmet,
    write_results,
)
from autoprune.strategy.space import Candidate


def write_outcome(
    directory: RunDirectory,
    prepared: Prepared,
    evaluator: Evaluator,
    driver: StudyDriver,
    dense: Record,
    tested: Mapping[int, float],
    say: Say,
) -> SearchResult:
    """Write tables, page and the best network; return the result."""
    settings, record = directory.record.settings, directory.record
    goals = driver.problem.goals
    chosen = chosen_record(driver.records, goals)
    if chosen is not None:
        _write_network(directory, prepared, evaluator, chosen, tested, say)
    data = report_data(
        driver.records,
        model_name=record.model.name,
        profile=_profile_facts(record.profile, prepared),
        goals=goals,
        dense=dense,
        chosen=None if chosen is None else _chosen_network(chosen, prepared),
        run=RunFacts(
            settings=settings.model_dump(),
            versions=record.versions,
            seed=settings.seed,
            commands=_commands(directory, chosen is not None),
        ),
        test_accuracy=tested,
        finetuned=finetuned_facts(directory.path),
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


def _chosen_network(chosen: Record, prepared: Prepared) -> ChosenNetwork:
    space = prepared.problem.space
    candidate = chosen.evaluation.candidate
    widths, keep = space.network_widths(space.widths([candidate])), space.keep([candidate])
    removed = tuple(block for block, stays in zip(space.blocks, keep[0], strict=True) if not stays)
    gone = {
        name for block in prepared.network.blocks if block.name in removed for name in block.groups
    }
    return ChosenNetwork(
        trial=chosen.number,
        widths=tuple(
            GroupWidth(group.name, 0 if group.name in gone else int(kept), group.size)
            for group, kept in zip(prepared.network.groups, widths[0], strict=True)
        ),
        removed_blocks=removed,
        kernels=_kernels(candidate, prepared),
    )


def _kernels(candidate: Candidate, prepared: Prepared) -> tuple[KernelTime, ...]:
    """Return the latency of every kernel, in the unpruned network and in the candidate."""
    space, predictor = prepared.problem.space, prepared.predictor
    dense, chosen = (
        predictor.breakdown(
            space.network_widths(space.widths([network]))[0], space.keep([network])[0]
        )
        for network in (space.dense(), candidate)
    )
    return tuple(
        KernelTime(
            name=name.partition(" ")[0],
            kind=" ".join([kind, *name.split(" ")[1:]]),
            dense_ms=before,
            chosen_ms=after,
        )
        for (name, kind, before), (_, _, after) in zip(dense, chosen, strict=True)
    )


def _profile_facts(profile: DeviceProfile, prepared: Prepared) -> ProfileFacts:
    measured = profile.provenance
    return ProfileFacts(
        name=profile.name,
        device=profile.device,
        runtime=f"{profile.runtime} {profile.runtime_version}",
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


def load_call(directory: RunDirectory) -> str:
    """Return the call that loads the best network, as it is typed in Python."""
    source = directory.record.settings.model
    arguments = [repr(str(directory.path / NETWORK_FOLDER))]
    if source is None:
        arguments.append("model=your_unpruned_model")
    elif not ModelSource.parse(source).trusted:
        arguments.append("trust_source=True")
    return f"autoprune.load({', '.join(arguments)})"
