"""``autoprune profile``: measures this machine, or makes a kit that measures a board."""

from __future__ import annotations

import contextlib
import datetime
import enum
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from autoprune.errors import SettingsError

if TYPE_CHECKING:
    from autoprune.latency.profile import DeviceProfile
    from autoprune.measure.backend import Backend
    from autoprune.measure.measuring import Listener, Standing
    from autoprune.measure.subjects import Source

#: What is measured when no model is given: ResNet, MobileNetV2 and ViT shapes.
GENERIC = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "timm:vit_tiny_patch16_224",
)

#: A reference that spreads more than this is told.
NOISY = 0.05

_MODEL_HELP = (
    "Measure networks and kernels of this model, as a search would prune it; can be repeated. "
    "Default: ResNet-18 and -50, MobileNetV2 and ViT-Ti."
)


class Clock(enum.StrEnum):
    """What times are read from."""

    auto = "auto"
    wall = "wall"
    cpu = "cpu"


class Kind(enum.StrEnum):
    """Kind of predictor."""

    auto = "auto"
    roofline = "roofline"
    learned = "learned"
    table = "table"


profile_app = typer.Typer(
    invoke_without_command=True,
)


@profile_app.callback()
def profile(
    context: typer.Context,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the profile.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the profile goes; measurements lie in FILE's name with .measured.",
        ),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="torch, torch-compile, onnxruntime, openvino; on NVIDIA GPUs torch-cuda, "
            "torch-compile-cuda, onnxruntime-cuda, onnxruntime-tensorrt, tensorrt.",
        ),
    ] = "onnxruntime",
    model: Annotated[list[str] | None, typer.Option(metavar="MODEL", help=_MODEL_HELP)] = None,
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Measure for this long; the fit comes on top.")
    ] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads, on processors.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16, bf16 or int8.")] = "fp32",
    kind: Annotated[Kind, typer.Option(help="Kind of predictor; auto takes the best.")] = Kind.auto,
    clock: Annotated[
        Clock,
        typer.Option(
            help="wall; cpu: the time the thread ran, which other programs do not lengthen; auto: "
            "cpu where one thread does it all."
        ),
    ] = Clock.auto,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The device in words; default: its name.")
    ] = None,
    kernels: Annotated[int, typer.Option(min=0, help="Single kernels measured per network.")] = 2,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Measure this machine and fit a device profile; `profile kit` measures another one.

    It is judged on networks that it was not fitted on.

    \b
    autoprune profile --device mine -o mine.yaml --minutes 5
    """  # noqa: D301 - click keeps lines after a backspace as they are
    if context.invoked_subcommand is not None:
        return
    if device is None or output is None:
        raise SettingsError(
            "autoprune profile needs --device NAME and --output FILE.yaml; for another machine: "
            "autoprune profile kit -o DIR"
        )
    if output.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"--output must end in .yaml, got {output}")
    from autoprune.latency.calibrate import Target
    from autoprune.latency.profile import Setup, save_profile
    from autoprune.measure.alignment import alignment_of
    from autoprune.measure.backend import open_backend
    from autoprune.measure.board import device_name
    from autoprune.measure.measuring import Folder, measure
    from autoprune.measure.outcome import outcome
    from autoprune.measure.subjects import Sampler

    console = Console(highlight=False, soft_wrap=True, stderr=True)
    backend = open_backend(runtime, threads=threads, precision=precision, clock=clock.value)
    version = f"{runtime}_{backend.version()}"
    who = {
        "device": device,
        "runtime": version,
        "precision": precision,
        "threads": threads,
        "clock": backend.clock,
    }
    try:
        folder = Folder(output.with_suffix(".measured"), who)
    except OSError as error:
        raise SettingsError(f"cannot write {output}: {error.strerror}") from None
    sources = sources_of(model or GENERIC, console)
    alignment = alignment_of(backend, folder)
    sampler = Sampler(sources, alignment=alignment, kernels=kernels, seed=seed)
    with _progress(console, 60 * minutes) as listener:
        standing = measure(backend, sampler.laps(), folder, seconds=60 * minutes, listener=listener)
    _tell(console, standing)
    console.print("fitting")
    target = Target(
        name=device,
        device=title or device_name(),
        runtime=backend.rules,
        runtime_version=_described(version, backend),
        precision=precision,
        batch=sources[0].batch,
        alignment=alignment,
        kind=kind.value,
    )
    today = datetime.datetime.now(datetime.UTC).date()
    found = outcome(folder, target, date=today, failed=standing.failed)
    setup = Setup(machine=device_name(), backend=runtime, threads=threads, clock=backend.clock)
    made_here = found.profile.model_copy(update={"setup": setup})
    given: dict[str, Sequence[object]] = {
        "--device": [device],
        "--title": [title] if title else [],
        "--runtime": [runtime],
        "--model": model or [],
        "--minutes": [minutes],
        "--threads": [threads],
        "--precision": [precision],
        "--kind": [kind.value],
        "--clock": [clock.value],
        "--kernels": [kernels],
        "--seed": [seed],
        "--output": [output],
    }
    made = ["Made by:", f"  {_command(given)}"]
    comment = "\n".join([*found.remarks, _noise(folder.noises()), *made])
    try:
        save_profile(made_here, output, comment=comment)
    except OSError as error:
        raise SettingsError(f"cannot write {output}: {error.strerror}") from None
    _show(made_here, output)


@profile_app.command()
def kit(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the kit goes, or lies.")
    ],
    model: Annotated[list[str] | None, typer.Option(metavar="MODEL", help=_MODEL_HELP)] = None,
    networks: Annotated[int, typer.Option(min=1, help="Networks in the kit.")] = 24,
    kernels: Annotated[int, typer.Option(min=0, help="Single kernels in it per network.")] = 2,
    alignment: Annotated[
        int, typer.Option(min=1, help="Channels of pruned networks are multiples of this.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    ssh: Annotated[
        str | None,
        typer.Option(metavar="USER@HOST", help="Copy the kit there, run it, fetch the results."),
    ] = None,
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For ssh: ports, keys, jump hosts.")
    ] = None,
    python: Annotated[str, typer.Option(metavar="PATH", help="Python over there.")] = "python3",
    arguments: Annotated[
        str, typer.Option(metavar="TEXT", help="For run.py over there, e.g. '--precision fp16'.")
    ] = "",
) -> None:
    """Write a folder that measures another machine, and with --ssh run it there.

    \b
    autoprune profile kit -o kit
    autoprune profile kit -o kit --ssh me@board
    """  # noqa: D301 - click keeps lines after a backspace as they are
    from autoprune.measure.kit import is_kit, write_kit
    from autoprune.measure.remote import Host, run_remotely
    from autoprune.measure.subjects import Sampler

    console = Console(highlight=False, soft_wrap=True, stderr=True)
    host = None if ssh is None else Host(ssh, ssh_config, python)
    if is_kit(output) and host is not None:
        console.print(f"using the kit in {escape(str(output))}")
    else:
        sources = sources_of(model or GENERIC, console)
        sampler = Sampler(sources, alignment=alignment, kernels=kernels, seed=seed)
        try:
            made = write_kit(sampler, output, networks=networks)
        except OSError as error:
            raise SettingsError(f"cannot write {output}: {error.strerror}") from None
        console.print(
            f"wrote {made.networks} networks and {made.kernels} kernels, "
            f"{made.size_bytes / 2**20:.0f} MiB; {escape(str(output))}/README.txt says how to go on"
        )
    if host is not None:
        results = run_remotely(output, host, shlex.split(arguments))
        console.print(f"fetched {escape(str(results))}; `autoprune calibrate` reads it")


def sources_of(models: Sequence[str], console: Console) -> list[Source]:
    """Return the traced models, one batch size for all.

    Raises:
        SettingsError: Their batches differ.
    """
    from autoprune.cli.inputs import example_inputs
    from autoprune.measure.subjects import Source
    from autoprune.network.source import ModelSource

    sources = []
    for spec, name in zip(models, _names(models), strict=True):
        parsed = ModelSource.parse(spec)
        module = parsed.build()
        sources.append(Source(name, module, example_inputs(parsed.spec, module, None, ())))
        console.print(f"traced {escape(spec)}")
    batches = {source.name: source.batch for source in sources}
    if len(set(batches.values())) > 1:
        raise SettingsError(f"the models take different batches: {batches}; measure them apart")
    return sources


def _names(models: Sequence[str]) -> list[str]:
    """Return what the models' networks are called: architectures, where these differ."""
    short = [Path(spec.rpartition(":")[2]).name or spec for spec in models]
    return short if len(set(short)) == len(short) else list(models)


@contextlib.contextmanager
def _progress(console: Console, seconds: float) -> Iterator[Listener]:
    """Show the time that has passed and what was measured in it."""
    columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as display:
        task = display.add_task("measuring", total=seconds)

        def listener(standing: Standing) -> None:
            display.update(
                task, completed=min(standing.seconds, seconds), description=_counted(standing)
            )
            if not console.is_terminal:
                console.print(f"{standing.seconds:.0f} s: {_counted(standing)}")

        yield listener


def _counted(standing: Standing) -> str:
    return (
        f"{standing.networks} networks, {standing.kernels} kernels, reference spread "
        f"{100 * standing.noise:.1f} %"
    )


def _tell(console: Console, standing: Standing) -> None:
    console.print(f"measured {_counted(standing)}")
    if standing.noise > NOISY:
        console.print(
            f"[yellow]warning:[/] the reference spread by {100 * standing.noise:.0f} %: the "
            "machine is busy, or changes its speed as it warms up; the fit is no better than that"
        )
    for name, reason in standing.failed.items():
        console.print(f"[yellow]not measured:[/] {escape(name)}: {escape(reason)}")


def _noise(runs: Sequence[dict[str, float]]) -> str:
    worst = max((run["reference_spread"] for run in runs), default=0.0)
    rounds = int(sum(run["rounds"] for run in runs))
    return f"The reference kernel spread by {100 * worst:.1f} % at most, over {rounds} rounds."


def _described(version: str, backend: Backend) -> str:
    threads = f"{backend.threads} thread{'s' if backend.threads > 1 else ''}"
    return f"{version}, {threads}, {backend.clock} clock"


def _command(given: Mapping[str, Sequence[object]]) -> str:
    pairs = ((option, value) for option, values in given.items() for value in values)
    words = (f"{option} {shlex.quote(str(value))}" for option, value in pairs)
    return f"autoprune profile {' '.join(words)}"


def _show(found: DeviceProfile, output: Path) -> None:
    error = found.provenance.held_out
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"held-out error {100 * error.mape:.1f} % over {len(found.provenance.predictions)} "
        f"networks ({100 * error.within_10:.0f} % within 10 %, rank correlation "
        f"{error.spearman:.3f}); {found.predictor.kind}; channels in multiples of "
        f"{found.alignment}\nwritten to {escape(str(output))}"
    )
