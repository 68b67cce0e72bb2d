"""``autoprune search``: the main job, and how it is continued."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.options import BudgetMs, Device, Weights
from autoprune.cli.view import Mode, View
from autoprune.errors import SettingsError
from autoprune.strategy.options import parse_options

if TYPE_CHECKING:
    from autoprune.run import Run, SearchResult


def search(
    model_name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="digits, torchvision:NAME, timm:NAME, package.module:factory or file.py:factory. "
            "\\[default: digits]",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The same as the argument.")
    ] = None,
    weights: Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="digits, cifar10:DIR, image-folder:DIR, text:FILE?tokenizer=FOLDER,"
            " package.module:factory or file.py:factory."
            " \\[default: digits, for the model of that name]",
        ),
    ] = None,
    device: Device = None,
    budget_ms: BudgetMs = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="accuracy,COST,...",
            help="What the front is sought of: accuracy, then latency, latency@DEVICE, macs, "
            "params, memory, energy. \\[default: accuracy,latency]",
        ),
    ] = None,
    max_params: Annotated[
        str | None,
        typer.Option(metavar="N", help="Parameters that no network may exceed, as 1.5M."),
    ] = None,
    max_macs: Annotated[
        str | None,
        typer.Option(metavar="N", help="MACs of one batch that no network may exceed, as 300M."),
    ] = None,
    max_memory_mb: Annotated[
        float | None,
        typer.Option(metavar="MB", help="Memory for weights and activations, as a limit."),
    ] = None,
    max_latency_ms: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MS@DEVICE", help="Limit on another device beside --device; may be repeated."
        ),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Accuracy that a network must reach; without a budget the fastest is the best.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Samples per batch. \\[default: the data's own]")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Networks to evaluate. \\[default: 50]")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", help="Begin no evaluation after S seconds.")
    ] = None,
    trial_time_limit: Annotated[
        float | None,
        typer.Option(metavar="S", help="An evaluation that takes more than S seconds has failed."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Search strategy, also package.module:Class, file.py:factory or "
            "optunahub:PACKAGE. \\[default: knapsack]",
        ),
    ] = None,
    sampler_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the strategy; may be repeated."),
    ] = None,
    warm_start: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Begin with N networks of least expected damage. \\[default: 0]"
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Importance criterion, see docs/criteria.md. \\[default: that of --damage, or l2]",
        ),
    ] = None,
    damage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Criterion that a sampler expects losses from. \\[default: the sampler's own]",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="auto|loss|calibrated|kl",
            help="Loss, loss at the best temperature, or divergence from the unpruned network (no "
            "labels). \\[default: auto: calibrated where images are classified]",
        ),
    ] = None,
    racing: Annotated[
        bool | None,
        typer.Option(
            "--racing/--no-racing",
            help="End an evaluation early where a network as fast is clearly better.",
        ),
    ] = None,
    rungs: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS,...",
            help="Afterwards train the best quarter for so many steps, the best quarter of those "
            "further, and so on: 40,200,2ep, see docs/cluster.md.",
        ),
    ] = None,
    realise: Annotated[
        str | None,
        typer.Option(
            metavar="slice|statistics|merge|reconstruct",
            help="Repair of a pruned network without training. \\[default: reconstruct]",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="auto|fp32|bf16",
            help="Number format of evaluations; auto: bf16 where this processor has it. "
            "\\[default: auto]",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder where scores are kept for other runs."),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="What may be removed. \\[default: default]"),
    ] = None,
    search_samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most samples one evaluation is scored on."),
    ] = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Training samples for statistics. \\[default: 256]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="\\[default: 0]")] = None,
    study_storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Study that several drivers work on, see docs/resume.md: sqlite:///FILE, "
            "postgresql://..., redis://... or journal:FILE. \\[default: the run directory]",
        ),
    ] = None,
    study_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of that study. \\[default: autoprune]"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Run directory. \\[default: runs/<UTC time>-<model>]",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "--max-concurrent",
            metavar="N",
            help="Evaluations side by side. \\[default: physical cores, or all of a Ray cluster]",
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(metavar="ray|inline", help="Worker processes or this one. \\[default: ray]"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="local[:N]|auto|ray://HOST:PORT",
            help="Ray to work on, see docs/cluster.md. \\[default: RAY_ADDRESS, or local]",
        ),
    ] = None,
    cpus_per_trial: Annotated[
        float | None,
        typer.Option(metavar="N", help="CPUs, and threads, of an evaluation. \\[default: 1]"),
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(metavar="N", help="GPUs of an evaluation, 0.25 shares one. \\[default: 0]"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", help="Keep Ray Tune's files there: a folder, s3://..., gs://..."
        ),
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Begin an evaluation again N times if its worker dies. \\[default: 1]"
        ),
    ] = None,
    ship_package: Annotated[
        bool | None,
        typer.Option("--ship-package", help="Send autoprune and the model's package to workers."),
    ] = None,
    logger: Annotated[
        list[str] | None,
        typer.Option(metavar="tensorboard|mlflow|wandb", help="Log trials; may be repeated."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Continue this run; takes limits and --study-storage only."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Measure the front at the end, where the device is this machine."
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE|RUN",
            help="Settings from a file that `autoprune init` wrote, or those of a run; what is "
            "given here beside it comes first.",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="search.NAME=VALUE",
            help="A setting by its name in that file; may be repeated.",
        ),
    ] = None,
    progress: Annotated[
        Mode | None,
        typer.Option(
            help="live: the front as it grows; plain: lines; jsonl: a JSON object a line on "
            "stdout; quiet: nothing. \\[default: live in a terminal, else plain]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the run directory and nothing else.")
    ] = False,
) -> None:
    """Search for the Pareto front of pruned networks, and write the best one under the budget.

    \b
    autoprune search --budget-ms 10 --device jetson
    autoprune search net.py:make --weights net.pt --data image-folder:photos \\
        --device raspberry_pi_4_ncnn --budget-ms 30
    autoprune search -c run.yaml --set search.trials=200
    autoprune search --resume runs/mine --trials 200
    """  # noqa: D301 - click keeps lines after a backspace as they are
    given: dict[str, Any] = {
        "model": _one_model(model_name, model),
        "weights": weights,
        "data": data,
        "device": device,
        "budget_ms": budget_ms,
        "objective": objective,
        "max_params": max_params,
        "max_macs": max_macs,
        "max_memory_mb": max_memory_mb,
        "max_latency_ms": _limits(max_latency_ms),
        "min_accuracy": min_accuracy,
        "batch": batch,
        "trials": trials,
        "time_limit": time_limit,
        "trial_time_limit": trial_time_limit,
        "sampler": sampler,
        "sampler_options": parse_options(sampler_option) if sampler_option else None,
        "warm_start": warm_start,
        "criterion": criterion,
        "damage": damage,
        "metric": metric,
        "racing": racing,
        "rungs": rungs,
        "precision": precision,
        "cache": None if cache is None else str(cache),
        "realise": realise,
        "space": space,
        "search_samples": search_samples,
        "calibration_samples": calibration_samples,
        "seed": seed,
        "study_storage": study_storage,
        "study_name": study_name,
        "workers": workers,
        "executor": executor,
        "ray": ray,
        "cpus_per_trial": cpus_per_trial,
        "gpus_per_trial": gpus_per_trial,
        "storage": storage,
        "max_failures": max_failures,
        "ship_package": ship_package,
        "loggers": logger or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if config is not None or assignments:
        given = _from_file(config, assignments or [], given, resume)
    mode = _mode(progress, quiet=quiet, as_json=as_json)
    view = _view(mode, as_json=as_json)
    result = _result(given, output, resume, view, verify=verify)
    if result.best is None:
        raise typer.Exit(1)
    if verify:
        from autoprune.cli.verify import verify_run

        verify_run(
            result.directory, say=view.note, stderr=as_json or mode in (Mode.quiet, Mode.jsonl)
        )


def _mode(progress: Mode | None, *, quiet: bool, as_json: bool) -> Mode | None:
    if quiet and progress not in (None, Mode.quiet):
        raise SettingsError(f"give --quiet or --progress {progress}, not both")
    if as_json and progress is Mode.jsonl:
        raise SettingsError(
            "--progress jsonl ends with the result as JSON; leave --json out, or take another "
            "--progress"
        )
    return Mode.quiet if quiet else progress


def _view(mode: Mode | None, *, as_json: bool) -> View:
    """Return what shows the search."""
    from autoprune.cli.outcome import show_outcome
    from autoprune.cli.progress import make_view

    if as_json:
        return make_view(mode, _print_json)
    return make_view(mode, _print_folder if mode is Mode.quiet else show_outcome)


def _from_file(
    config: Path | None, assignments: list[str], given: dict[str, Any], resume: Path | None
) -> dict[str, Any]:
    """Return settings of a file, in their place those of ``--set``, and over all what is given."""
    from autoprune.run.settings_file import assigned, merged, read_settings

    if config is not None and resume is not None:
        raise SettingsError("--resume continues a run with its own settings; leave --config out")
    settings = {} if config is None else read_settings(config)
    return merged(merged(settings, assigned(assignments)), given)


def _result(
    given: dict[str, Any], output: Path | None, resume: Path | None, view: View, *, verify: bool
) -> SearchResult:
    """Search, and show it."""
    with stopping_on_signals() as stopped_by:
        run = None
        try:
            with view.preparing():
                run = (
                    _new_run(given, output, view)
                    if resume is None
                    else (_old_run(given, output, resume, view))
                )
            if verify:
                from autoprune.run.verify import setup_here

                setup_here(run.directory.record.profile)
            with view.searching(run) as listener:
                result = run.execute(listeners=[listener], say=view.note)
        except KeyboardInterrupt:
            written = run is not None and (run.directory.path / "run.json").exists()
            view.stopped(run if written else None)
            raise typer.Exit(128 + (stopped_by[0] if stopped_by else signal.SIGINT)) from None
    view.finished(result, run)
    return result


def _print_json(result: SearchResult, run: Run) -> None:
    typer.echo(json.dumps(result.to_json(), indent=2))


def _print_folder(result: SearchResult, run: Run) -> None:
    typer.echo(str(result.directory))


def _limits(texts: list[str] | None) -> dict[str, float] | None:
    if not texts:
        return None
    from autoprune.run.goals import limits_by_device

    return limits_by_device(texts)


def _one_model(argument: str | None, option: str | None) -> str | None:
    if argument is not None and option is not None:
        raise SettingsError(
            f"two models were given, {argument!r} and --model {option!r}; give one of them"
        )
    return argument if option is None else option


def _new_run(given: dict[str, Any], output: Path | None, view: View) -> Run:
    from autoprune.run import Run, RunSettings, own_task

    model = given.get("model", "digits")
    if "data" not in given:
        given["data"] = own_task(model)
    settings = RunSettings.checked({"model": model, **given})
    return Run.create(settings, output=output, say=view.note)


def _old_run(given: dict[str, Any], output: Path | None, resume: Path, view: View) -> Run:
    from autoprune.run import Run
    from autoprune.run.settings import CHANGEABLE

    allowed = {*CHANGEABLE, "study_storage"}
    foreign = sorted((given.keys() - allowed) | ({"output"} if output else set()))
    if foreign:
        options = ", ".join(_flag(name) for name in foreign)
        raise SettingsError(
            f"--resume continues a run with its own settings, so {options} cannot be given; "
            "leave that out, or start a new run without --resume"
        )
    return Run.resume(resume, limits=given, say=view.note)


def _flag(setting: str) -> str:
    """Return the option that gives a setting."""
    repeated = {"sampler_options": "sampler-option", "loggers": "logger"}
    return f"--{repeated.get(setting, setting.replace('_', '-'))}"


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[list[int]]:
    """Let SIGTERM stop the body as Ctrl-C does; what is yielded fills with the signals' numbers.

    A further signal while the body winds down is ignored.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
