"""``autoprune predict``: milliseconds and bytes of a network on a device, and where they go."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import ProfileError, SettingsError

if TYPE_CHECKING:
    from autoprune.latency.profile import DeviceProfile
    from autoprune.latency.roofline import Predictor
    from autoprune.network.inputs import Inputs
    from autoprune.network.network import Network
    from autoprune.network.ops import OpTable

#: Rows of the breakdown that are printed; JSON has all.
_SHOWN = 20

#: Columns of the CSV file that ``--table`` writes.
COLUMNS = (
    *("network", "device", "runtime", "precision", "batch", "latency_ms", "held_out_mape"),
    *("macs", "weight_bytes", "activation_bytes", "notes"),
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One network to predict.

    Attributes:
        name: What the user called it.
        ops: Its operators at the batch that is predicted.
        notes: What a reader should know about it.
    """

    name: str
    ops: OpTable
    notes: tuple[str, ...] = ()


def predict(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=(
                "digits, torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory, "
                "file.py:factory, or the folder of a network that a search saved."
            ),
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Device profile: a name, an alias or a file."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images per forward pass; default: that of --input, else the profile's.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A layer list instead of MODEL, JSON."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Many layer lists by name, JSON; one CSV row each."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the CSV of --table goes."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Take the inputs from this task.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "--input-shape",
            metavar="[NAME:]SHAPE[:DTYPE]",
            help="An input, batch first, as `autoprune inspect` takes it; once for each.",
        ),
    ] = None,
    fake: Annotated[
        bool | None,
        typer.Option(
            "--fake/--values",
            help=(
                "Trace shapes without weights, or with them; by default without where they would "
                "take over a quarter of the free memory."
            ),
            show_default=False,
        ),
    ] = None,
    trust_source: Annotated[
        bool, typer.Option("--trust-source", help="Run the Python code that a folder names.")
    ] = False,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the breakdown; 0 prints all.")] = _SHOWN,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Predict latency and memory on a device, with the error and what each kernel costs.

    \b
    autoprune predict torchvision:resnet50 --device jetson_orin_nano
    autoprune predict runs/mine/network --device jetson
    """  # noqa: D301 - click keeps lines after a backspace as they are
    from autoprune.latency.profile import load_profile

    _refuse(model, device, layers, table, output, data, inputs)
    assert device is not None
    profile = load_profile(device)
    if table is not None:
        _many(table, profile, batch, output, as_json)
        return
    subject = (
        _listed(layers, batch or profile.batch)
        if layers is not None
        else _traced(
            str(model), profile, batch, data=data, texts=inputs or (), fake=fake, trust=trust_source
        )
    )
    content = described(subject, profile)
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    else:
        _show(Console(highlight=False, soft_wrap=True), content, profile, rows)


def described(subject: Subject, profile: DeviceProfile) -> dict[str, Any]:
    """Return what ``--json`` prints: totals, notes, and every kernel, the dearest first.

    Args:
        subject: The network.
        profile: The device.
    """
    content, predictor = _totals(subject, profile)
    ops = subject.ops
    kernels = _kernels(ops, profile)
    lines = predictor.breakdown(ops.full_widths[0], ops.full_keep[0])
    total = content["latency_ms"] or 1.0
    kernels.append({"macs": 0, "limit": "constant"})  # what a network takes beyond its kernels
    merged = [
        {"name": name, "family": family, "latency_ms": ms, "share": ms / total, **kernel}
        for (name, family, ms), kernel in sorted(
            zip(lines, kernels, strict=True), key=lambda pair: -pair[0][2]
        )
    ]
    return content | {"kernels": merged}


def _refuse(
    model: str | None,
    device: str | None,
    layers: Path | None,
    table: Path | None,
    output: Path | None,
    data: str | None,
    inputs: Sequence[str] | None,
) -> None:
    """Raise for options that say too much or too little, naming every fault."""
    faults = []
    if device is None:
        faults.append("--device: missing; `autoprune devices` lists the devices")
    if sum(given is not None for given in (model, layers, table)) != 1:
        faults.append("give exactly one of MODEL, --layers FILE and --table FILE")
    if table is None and output is not None:
        faults.append("--output goes with --table; --json prints one network")
    if model is None and (data is not None or inputs):
        faults.append("--data and --input go with MODEL; a layer list has its sizes inside")
    if faults:
        raise SettingsError("; ".join(faults))


def _totals(subject: Subject, profile: DeviceProfile) -> tuple[dict[str, Any], Predictor]:
    """Return a network's totals on a device, and the predictor that gave them."""
    from autoprune.latency.memory import MemoryModel
    from autoprune.latency.predict import predictor_for

    ops = subject.ops
    predictor = predictor_for(ops, profile)
    memory = MemoryModel(
        ops, bytes_per_element=profile.bytes_per_element, reuse=profile.runtime != "eager"
    ).footprint()
    error, power = profile.provenance.held_out, profile.power
    latency_ms = float(predictor.predict(ops.full_widths, ops.full_keep)[0])
    return {
        "network": subject.name,
        "device": profile.name,
        "runtime": profile.runtime,
        "precision": profile.precision,
        "batch": max((op.batch for op in ops.ops), default=1),
        "latency_ms": latency_ms,
        "held_out_mape": error.mape,
        "within_10": error.within_10,
        "quality": profile.quality,
        "macs": int(ops.macs()[0]),
        "weight_bytes": int(memory.weights[0]),
        "activation_bytes": int(memory.activations[0]),
        "energy_mj": power and power.watts * latency_ms,
        "notes": [*subject.notes, *predictor.notes],
    }, predictor


def _kernels(ops: OpTable, profile: DeviceProfile) -> list[dict[str, Any]]:
    """Return multiply-accumulates and what limits it for every kernel, in execution order.

    The limit is the largest of launching it, its arithmetic and its memory traffic, by the
    profile's roofline.
    """
    import numpy as np

    from autoprune.latency.kernels import FAMILIES, fuse
    from autoprune.latency.predict import rooflines
    from autoprune.latency.samples import shapes_of

    table = fuse(ops, profile.runtime)
    limits = [rooflines(profile)[family] for family in FAMILIES]
    shapes = shapes_of(table)
    padding = np.array([limit.paddings for limit in limits], float)
    computed, moved = shapes.work(padding, profile.bytes_per_element)
    # A runtime may compute fewer (Winograd); what is shown are the network's own.
    macs = iter(_macs_per_op(ops))
    lines = []
    for kernel, family, count, size in zip(
        table.kernels, shapes.family, computed, moved, strict=True
    ):
        limit = limits[family]
        times = {
            "launch": limit.overhead_ms,
            "arithmetic": count * 1e-6 / limit.peak_gmacs_per_s,
            "memory": size * 1e-6 / limit.bandwidth_gb_s,
        }
        own = next(macs) if kernel.macs else 0
        lines.append({"macs": own, "limit": max(times, key=lambda name: times[name])})
    return lines


def _macs_per_op(ops: OpTable) -> Iterator[int]:
    """Yield the multiply-accumulates of the operators that have any, in execution order."""
    for op in ops.ops:
        if op.kind in ("conv", "linear", "matmul"):
            alone = dataclasses.replace(ops, ops=(op,), parameters=())
            yield int(alone.macs()[0])


def _listed(path: Path, batch: int) -> Subject:
    """Return the only network of a file of layer lists."""
    from autoprune.latency.layers import ops_from_rows, read_layers

    found = read_layers([path])
    if len(found) != 1:
        raise SettingsError(
            f"{path} holds {len(found)} networks; --layers takes a file with one, "
            f"--table {path} predicts all"
        )
    ((name, rows),) = found.items()
    return Subject(name, ops_from_rows(rows, network=name, batch=batch))


def _traced(
    spec: str,
    profile: DeviceProfile,
    batch: int | None,
    *,
    data: str | None,
    texts: Sequence[str],
    fake: bool | None,
    trust: bool,
) -> Subject:
    """Return a model's operators at the batch that is wanted."""
    from autoprune.network.inputs import batch_size, first_samples
    from autoprune.network.trace import trace

    if Path(spec).is_dir():
        module, examples, notes = _saved(Path(spec), texts, data, trust)
    else:
        module, examples, notes = _built(spec, texts, data, fake)
    if batch is None:
        batch = batch_size(examples) if texts else profile.batch
    # Everything but the batch is the same at every batch, so one image is enough to trace.
    network: Network = trace(module, first_samples(examples, 1))
    if network.unsupported:
        names = ", ".join(sorted(network.unsupported))
        notes = (*notes, f"operators without a rule: {names}")
    ops = network.ops
    grown = tuple(dataclasses.replace(op, batch=op.batch * batch) for op in ops.ops)
    return Subject(spec, dataclasses.replace(ops, ops=grown), notes)


def _built(
    spec: str, texts: Sequence[str], data: str | None, fake: bool | None
) -> tuple[Any, Inputs, tuple[str, ...]]:
    """Return a model built from its source, its inputs, and notes."""
    from autoprune.cli.inputs import example_inputs
    from autoprune.network.source import ModelSource

    source = ModelSource.parse(spec)
    if fake is None:
        fake = source.outgrows_memory()
    # That weights are random does not matter here.
    module, _ = source.build_with_notes(fake=fake)
    return module, example_inputs(source.spec, module, data, texts), ()


def _saved(
    folder: Path, texts: Sequence[str], data: str | None, trust: bool
) -> tuple[Any, Inputs, tuple[str, ...]]:
    """Return a pruned network from its folder, and the inputs it was pruned with."""
    from autoprune.cli.inputs import example_inputs
    from autoprune.export.package import load, read_package

    record = read_package(folder)
    module = load(folder, trust_source=trust)
    if texts or data is not None:
        return module, example_inputs("", module, data, texts), ()
    return module, record.example_inputs(), ()


def _many(
    path: Path, profile: DeviceProfile, batch: int | None, output: Path | None, as_json: bool
) -> None:
    """Predict every network of a file of layer lists, as CSV or JSON."""
    from autoprune.files import write_atomically
    from autoprune.latency.layers import ops_from_rows, read_layers

    faults, results = [], []
    for name, rows in read_layers([path]).items():
        try:
            ops = ops_from_rows(rows, network=name, batch=batch or profile.batch)
        except ProfileError as error:
            faults.append(str(error))
            continue
        results.append(_totals(Subject(name, ops), profile)[0])
    if faults:
        raise ProfileError("\n".join(faults))
    text = json.dumps(results, indent=2) + "\n" if as_json else _csv(results)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        write_atomically(output, text)
    except OSError as error:
        raise SettingsError(f"cannot write {output}: {error.strerror}") from None
    typer.echo(f"{len(results)} networks on {profile.name} ({profile.error_text}): {output}")


def _csv(results: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        ms = f"{result['latency_ms']:.6g}"
        writer.writerow({**result, "latency_ms": ms, "notes": "; ".join(result["notes"])})
    return stream.getvalue()


def _show(console: Console, content: Mapping[str, Any], profile: DeviceProfile, rows: int) -> None:
    from autoprune.report.text import count, percent, significant

    error = profile.provenance.held_out
    console.print(
        f"{escape(content['network'])} on {escape(profile.name)}: {escape(profile.device)}, "
        f"{profile.runtime} {profile.precision}, batch {content['batch']}"
    )
    console.print(
        f"[bold]{profile.latency_text(content['latency_ms'])}[/]; {content['quality']} data: "
        f"{profile.provenance.sample_count} measured, {percent(error.within_10, 0)} of them "
        "predicted within 10 %"
    )
    weights, activations = content["weight_bytes"], content["activation_bytes"]
    console.print(
        f"{count(content['macs'])}MACs; memory {count(weights + activations)}B: "
        f"{count(weights)}B of weights, {count(activations)}B of activations at most"
    )
    if profile.power is None:
        console.print("energy: not predicted; this profile carries no measured power")
    else:
        energy = f"{significant(content['energy_mj'])} mJ at {profile.power.watts:g} W"
        console.print(f"energy: {energy} ({escape(profile.power.source)})")
    kernels = content["kernels"]
    shown = kernels[: rows or len(kernels)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("kernel", overflow="fold")
    table.add_column("family")
    for title in ("ms", "share", "MACs"):
        table.add_column(title, justify="right")
    table.add_column("limited by")
    for line in shown:
        table.add_row(
            escape(line["name"]),
            line["family"],
            significant(line["latency_ms"]),
            percent(line["share"]),
            count(line["macs"]) if line["macs"] else "",
            line["limit"],
        )
    console.print(table)
    if len(shown) < len(kernels):
        rest = sum(line["latency_ms"] for line in kernels[len(shown) :])
        console.print(f"and {len(kernels) - len(shown)} more: {significant(rest)} ms (--rows 0)")
    for note in content["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}")
