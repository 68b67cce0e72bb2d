"""``autoprune verify``: the front's predicted latencies against measured ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import SettingsError

if TYPE_CHECKING:
    from autoprune.run.finished import FinishedRun
    from autoprune.run.results import SearchResult
    from autoprune.run.verify import Verification


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    measurements: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A board's table, CSV, instead of measuring here."),
    ] = None,
    kit: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Only write a kit that measures the front on another machine."
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Measure on this machine in this runtime, whatever the profile."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="Begin no network after so long.")] = 10.0,
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate",
            help="Correct the profile with what was measured, and write the run by it.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where --recalibrate writes. \\[default: RUN/recalibrated]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print verify.json.")] = False,
) -> None:
    """Measure the unpruned network and the front, and compare with what was predicted.

    autoprune verify runs/mine --recalibrate
    """
    if kit is not None and (measurements is not None or recalibrate or runtime is not None):
        raise SettingsError("--kit only writes a kit; measure with it, then use --measurements")
    if measurements is not None and runtime is not None:
        raise SettingsError("give --measurements or --runtime, not both")
    if output is not None and not recalibrate:
        raise SettingsError("--output says where --recalibrate writes; add --recalibrate")
    from autoprune.run.finished import FinishedRun
    from autoprune.run.verify import FrontDraws, setup_here
    from autoprune.run.verify import recalibrate as recalibrated
    from autoprune.run.verify import verify as verified

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(sentence: str) -> None:
        console.print(f"[yellow]note:[/] {escape(sentence)}")

    if kit is None and measurements is None:
        from autoprune.run.directory import RunDirectory

        setup_here(RunDirectory.open(run).record.profile, runtime=runtime)  # before all work
    finished = FinishedRun.open(run, say=say)
    if kit is not None:
        from autoprune.measure.kit import write_kit

        made = write_kit(FrontDraws(finished), kit, networks=len(FrontDraws(finished)))
        typer.echo(f"wrote {made.networks} networks; {kit}/README.txt says how to measure them")
        return
    found = verified(
        finished, runtime=runtime, measurements=measurements, seconds=60 * minutes, say=say
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        show(found, run)
    if recalibrate:
        _show_recalibrated(finished, recalibrated(finished, found, output=output, say=say), as_json)


def verify_run(path: Path, *, say: Callable[[str], None], stderr: bool) -> None:
    """Verify the run in ``path`` on this machine and print what came out."""
    from autoprune.run.finished import FinishedRun
    from autoprune.run.verify import verify as verified

    show(verified(FinishedRun.open(path, say=say), say=say), path, stderr=stderr)


def show(found: Verification, run: Path, *, stderr: bool = False) -> None:
    """Print every network as predicted and as measured."""
    console = Console(highlight=False, soft_wrap=True, stderr=stderr)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("network")
    for title in ("accuracy", "predicted ms", "measured ms", "error", "speed-up"):
        table.add_column(title, justify="right")
    table.add_column("")
    for row in found.rows:
        speed_up = found.speed_up(row)
        table.add_row(
            row.network,
            f"{100 * row.accuracy:.2f} %",
            f"{row.predicted_ms:.4g}",
            f"{row.measured_ms:.4g}",
            f"{100 * row.error:+.1f} %",
            "" if speed_up is None else f"{speed_up:.2f}x",
            "[yellow]outside[/]" if row.outside else "",
        )
    console.print(table)
    outside = sum(row.outside for row in found.rows)
    console.print(
        f"mean error {100 * found.mean_error:.1f} %; {outside} of {len(found.rows)} outside the "
        f"band of ±{100 * found.band:.0f} % of {escape(found.profile)}\n"
        f"measured on {escape(found.device)}: {escape(str(found.table))}"
    )
    if found.unmeasured:
        console.print(f"[yellow]not measured:[/] {escape(', '.join(found.unmeasured))}")
    if outside:
        console.print(
            "correct the profile and rank the trials again, without evaluating any:\n  "
            f"autoprune verify {escape(str(run))} --measurements {escape(str(found.table))} "
            "--recalibrate"
        )


def _show_recalibrated(finished: FinishedRun, result: SearchResult, as_json: bool) -> None:
    """Print what the corrected profile makes of the run."""
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    was = finished.results.chosen
    before = "none" if was is None else f"trial {was.trial}"
    after = "none" if result.best is None else f"trial {result.best.trial}"
    console.print(
        f"recalibrated: error ±{100 * result.device.error:.1f} % on the measured networks; "
        f"best {after} (was {before}); {len(result.points)} networks on the front\n"
        f"profile {escape(str(result.directory / 'profile.yaml'))}\n"
        f"run     {escape(str(result.directory))}"
    )
