"""``autoprune calibrate``: tables of measured latencies to a device profile."""

from __future__ import annotations

import datetime
import enum
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import SettingsError

if TYPE_CHECKING:
    from autoprune.latency.profile import DeviceProfile


class Overlap(enum.StrEnum):
    """Whether a kernel's computing and moving data overlap."""

    none = "none"
    full = "full"


def calibrate(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE...",
            help="CSV files with columns device, runtime, precision, batch, model, latency_ms, "
            "repo, path and optionally img_size.",
        ),
    ],
    layers: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Layer lists of the networks, JSON; can be repeated."),
    ],
    device: Annotated[str, typer.Option(metavar="NAME", help="Name of the profile.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes.")],
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help="tensorrt, onnxruntime or eager.")
    ] = "tensorrt",
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16, bf16, int8 or fp8.")] = "fp16",
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass in the tables.")] = 1,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The device in words; default: its name.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name; can be repeated.")
    ] = None,
    table_device: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The device in the tables; default: --device."),
    ] = None,
    table_runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=RULES]",
            help="The runtime in the tables, and the fusion rules of its rows; default: --runtime "
            "and every --runtime_VERSION in the tables.",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON: {"networks": {table name: layer-list name}, "sources": {repository: '
            '{"commit": ..., "licence": ...}}}.',
        ),
    ] = None,
    alignment: Annotated[int, typer.Option(min=1, help="Channels are padded to this.")] = 8,
    overlap: Annotated[
        Overlap, typer.Option(help="Do computing and moving data overlap in a kernel?")
    ] = Overlap.none,
    capability: Annotated[
        list[str] | None, typer.Option(help="tensor_cores, int8, sparsity_2_4; can be repeated.")
    ] = None,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Written at the head of the profile.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Fit a device profile to whole-network latencies, and print its held-out error."""
    from autoprune.latency.calibrate import Target
    from autoprune.latency.calibrate import calibrate as fitted
    from autoprune.latency.layers import read_layers
    from autoprune.latency.profile import save_profile
    from autoprune.latency.tables import Names, Selection, read_names, read_tables, select

    table = read_tables(tables)
    known = read_names(names) if names is not None else Names()
    runtimes = _runtimes(table_runtime, runtime, table["runtime"])
    selection = Selection(tuple(table_device or [device]), runtimes, precision, batch)
    measurements, left_out = select(table, read_layers(layers), selection, names=known)
    target = Target(
        name=device,
        device=title or device,
        runtime=runtime,
        runtime_version=", ".join(dict.fromkeys(m.origin.runtime for m in measurements)),
        precision=precision,
        batch=batch,
        alignment=alignment,
        overlap=overlap.value,
        capabilities=tuple(capability or ()),
        aliases=tuple(alias or ()),
    )
    profile = fitted(
        measurements,
        target,
        names=known,
        left_out=left_out,
        date=datetime.datetime.now(datetime.UTC).date(),
    )
    given: dict[str, Sequence[object]] = {
        "": tables,
        "--layers": layers,
        "--names": [names] if names else [],
        "--device": [device],
        "--title": [title] if title else [],
        "--alias": alias or [],
        "--runtime": [runtime],
        "--precision": [precision],
        "--batch": [batch],
        "--table-device": table_device or [],
        "--table-runtime": table_runtime or [],
        "--alignment": [alignment],
        "--overlap": [overlap.value],
        "--capability": capability or [],
        "--output": [output],
    }
    comment = "\n".join(filter(None, [note, "Made by:", f"  {_command(given)}"]))
    try:
        save_profile(profile, output, comment=comment)
    except OSError as error:
        raise SettingsError(f"cannot write {output}: {error.strerror}") from None
    if as_json:
        typer.echo(json.dumps(profile.model_dump(mode="json", by_alias=True), indent=2))
    else:
        _show(profile, output)


def _runtimes(given: list[str] | None, runtime: str, present: Iterable[str]) -> dict[str, str]:
    """Return the tables' runtime names to use, each with the fusion rules of its rows."""
    if given:
        pairs = (text.partition("=") for text in given)
        return {name: rules or runtime for name, _, rules in pairs}
    return {
        name: runtime
        for name in sorted(set(present))
        if name == runtime or name.startswith(f"{runtime}_")
    }


def _command(given: Mapping[str, Sequence[object]]) -> str:
    """Return the command line, with the shared data folder as its environment variable."""
    words = ["autoprune", "calibrate"]
    for option, values in given.items():
        for value in values:
            words.extend([option] if option else [])
            words.append(_portable(value) if isinstance(value, Path) else shlex.quote(str(value)))
    return " ".join(words)


def _portable(path: Path) -> str:
    shared = os.environ.get("AUTOPRUNE_SHARED")
    if shared and path.resolve().is_relative_to(Path(shared).resolve()):
        inside = path.resolve().relative_to(Path(shared).resolve())
        return f"$AUTOPRUNE_SHARED/{inside.as_posix()}"
    return shlex.quote(path.as_posix())


def _show(profile: DeviceProfile, output: Path) -> None:
    from autoprune.latency.tables import family_of

    provenance = profile.provenance
    console = Console(highlight=False, soft_wrap=True)
    table = Table("network", "source", "measured ms", "held-out ms", "error", box=None)
    by_family: dict[str, list[float]] = {}
    for line in provenance.predictions:
        off = line.predicted_ms / line.measured_ms - 1
        by_family.setdefault(family_of(line.network), []).append(abs(off))
        measured, predicted = f"{line.measured_ms:.4g}", f"{line.predicted_ms:.4g}"
        source = escape(line.source.rsplit("/", 1)[-1])
        table.add_row(escape(line.network), source, measured, predicted, f"{100 * off:+.1f} %")
    console.print(table)
    families = Table("family", "networks", "mean error", box=None)
    for family, errors in sorted(by_family.items()):
        mean = 100 * sum(errors) / len(errors)
        families.add_row(escape(family), str(len(errors)), f"{mean:.1f} %")
    console.print(families)
    for network, reason in provenance.left_out.items():
        console.print(f"left out: {escape(network)}: {escape(reason)}")
    error = provenance.held_out
    console.print(
        f"held-out error {100 * error.mape:.1f} % over {provenance.sample_count} networks "
        f"({100 * error.within_10:.0f} % of the rows within 10 %, rank correlation "
        f"{error.spearman:.3f})"
    )
    if provenance.unseen_family is not None:
        unseen = 100 * provenance.unseen_family.mape
        console.print(f"with whole families held out: {unseen:.1f} %")
    console.print(f"written to {escape(str(output))}")
