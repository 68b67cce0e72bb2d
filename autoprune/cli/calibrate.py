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


#: Channel alignment where nothing was measured that shows it.
NETWORK_ALIGNMENT = 8


class Kind(enum.StrEnum):
    """Kinds of predictors, and the one that finds out."""

    roofline = "roofline"
    learned = "learned"
    table = "table"
    auto = "auto"


class Overlap(enum.StrEnum):
    """Whether a kernel's computing and moving data overlap."""

    none = "none"
    full = "full"


def calibrate(
    tables: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE...",
            help="CSV or Parquet files of whole networks (device, runtime, precision, batch, "
            "network, latency_ms) or of single kernels (op, cin, cout, ... or m, n, k instead of "
            "network); both can be mixed. docs/formats.md describes the columns.",
        ),
    ],
    device: Annotated[str, typer.Option(metavar="NAME", help="Name of the profile.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes.")],
    layers: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Layer lists of the networks, JSON; can be repeated."),
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(
            help="roofline: a few parameters per kernel family; learned: with boosted trees on "
            "top; table: with interpolation between kernel rows; auto: whichever is best on "
            "held-out data, which takes several times as long."
        ),
    ] = Kind.roofline,
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help="tensorrt, onnxruntime or eager.")
    ] = "tensorrt",
    precision: Annotated[str, typer.Option(help="fp32, tf32, fp16, bf16, int8 or fp8.")] = "fp16",
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass of the networks.")] = 1,
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
    alignment: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Channels are padded to this; default: found per kernel family from kernel rows, "
            "8 where there are only networks.",
        ),
    ] = None,
    overlap: Annotated[
        Overlap, typer.Option(help="Do computing and moving data overlap in a kernel?")
    ] = Overlap.none,
    processors: Annotated[
        int, typer.Option(min=1, help="Multiprocessors of a GPU; --kind learned makes use of it.")
    ] = 1,
    capability: Annotated[
        list[str] | None, typer.Option(help="tensor_cores, int8, sparsity_2_4; can be repeated.")
    ] = None,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Written at the head of the profile.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Fit a device profile to measured latencies, and print its held-out error.

    \b
    autoprune calibrate table.csv --layers layers.json --device mine -o mine.yaml
    """  # noqa: D301 - click keeps lines after a backspace as they are
    from autoprune.latency.calibrate import Target
    from autoprune.latency.calibrate import calibrate as fitted
    from autoprune.latency.layers import read_layers
    from autoprune.latency.measurements import Names, Selection, read_names, read_tables, select
    from autoprune.latency.profile import save_profile, without_texts

    table = read_tables(tables)
    known = read_names(names) if names is not None else Names()
    runtimes = _runtimes(table_runtime, runtime, table.runtimes())
    selection = Selection(tuple(table_device or [device]), runtimes, precision, batch)
    selected = select(table, read_layers(layers or []), selection, names=known)
    if alignment is None and selected.samples.whole.all():
        alignment = NETWORK_ALIGNMENT
    target = Target(
        name=device,
        device=title or device,
        runtime=runtime,
        runtime_version=", ".join(dict.fromkeys(o.runtime for o in selected.samples.origins)),
        precision=precision,
        batch=batch,
        alignment=alignment,
        overlap=overlap.value,
        processors=processors,
        kind=kind.value,
        capabilities=tuple(capability or ()),
        aliases=tuple(alias or ()),
    )
    profile = fitted(selected, target, date=datetime.datetime.now(datetime.UTC).date())
    given: dict[str, Sequence[object]] = {
        "": tables,
        "--layers": layers or [],
        "--names": [names] if names else [],
        "--device": [device],
        "--title": [title] if title else [],
        "--alias": alias or [],
        "--kind": [] if kind is Kind.roofline else [kind.value],
        "--runtime": [runtime],
        "--precision": [precision],
        "--batch": [batch],
        "--table-device": table_device or [],
        "--table-runtime": table_runtime or [],
        "--alignment": [alignment] if alignment else [],
        "--overlap": [overlap.value],
        "--processors": [processors] if processors > 1 else [],
        "--capability": capability or [],
        "--output": [output],
    }
    comment = "\n".join(filter(None, [note, "Made by:", f"  {_command(given)}"]))
    try:
        save_profile(profile, output, comment=comment)
    except OSError as error:
        raise SettingsError(f"cannot write {output}: {error.strerror}") from None
    if as_json:
        content = without_texts(profile.model_dump(mode="json", by_alias=True))
        typer.echo(json.dumps(content, indent=2))
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
    provenance = profile.provenance
    console = Console(highlight=False, soft_wrap=True)
    if provenance.predictions:
        _list(console, profile)
    for network, reason in provenance.left_out.items():
        console.print(f"left out: {escape(network)}: {escape(reason)}")
    error = provenance.held_out
    what = provenance.samples if provenance.samples == "networks" else "rows of kernels"
    console.print(
        f"held-out error {100 * error.mape:.1f} % over {provenance.sample_count} {what} "
        f"({100 * error.within_5:.0f} % of the rows within 5 %, {100 * error.within_10:.0f} % "
        f"within 10 %, rank correlation {error.spearman:.3f}): {profile.quality}"
    )
    console.print(f"kind {profile.predictor.kind}; {escape(provenance.split)}")
    for name, other in (
        ("the bare roofline", provenance.roofline_held_out),
        ("multiply-accumulates alone", provenance.macs_held_out),
    ):
        if other is not None:
            console.print(f"the same of {name}: {100 * other.mape:.1f} %")
    if provenance.unseen_family is not None:
        unseen = 100 * provenance.unseen_family.mape
        console.print(f"with whole families held out: {unseen:.1f} %")
    console.print(f"written to {escape(str(output))}")


def _list(console: Console, profile: DeviceProfile) -> None:
    from autoprune.latency.measurements import family_of

    table = Table("network", "source", "measured ms", "held-out ms", "error", box=None)
    by_family: dict[str, list[float]] = {}
    for line in profile.provenance.predictions:
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
