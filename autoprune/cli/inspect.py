"""``autoprune inspect``: what can be removed from a model, and why the rest cannot."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import SettingsError

if TYPE_CHECKING:
    from autoprune.network.groups import ChannelGroup
    from autoprune.network.network import Network

#: What trial cuts have shown, by what they compared.
_CHECKED = {
    "nothing": "nothing was cut to check this",
    "values": "every group was cut once; the values were compared",
    "shapes": (
        "every group was cut once; only shapes were compared, since the weights have no values here"
    ),
}


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=(
                "digits, torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory or "
                "file.py:factory."
            ),
        ),
    ] = "digits",
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Trained weights, to check that they fit.")
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
            help=(
                "An input, batch first: 1x3x224x224, input_ids:1x128:int64, or NAME=VALUE; once "
                "for each. Or file.py:function, which returns all of them."
            ),
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
    layers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the layer list as JSON, as `calibrate` reads it."),
    ] = None,
    with_sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="Add what each group's units and each block are worth, on samples of --data.",
        ),
    ] = False,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write the damage curves as an HTML page."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List channel groups, removable blocks, costs, and what is frozen and why.

    \b
    autoprune inspect torchvision:resnet50
    autoprune inspect net.py:make --input 1x3x64x64
    autoprune inspect digits --sensitivity --plot damage.html
    """  # noqa: D301 - click keeps lines after a backspace as they are
    from autoprune.cli import sensitivity
    from autoprune.cli.inputs import example_inputs
    from autoprune.network.source import ModelSource
    from autoprune.network.trace import trace
    from autoprune.pruning.verify import verified

    source = ModelSource.parse(model, weights=weights)
    with_sensitivity = with_sensitivity or plot_file is not None
    if with_sensitivity and data is None and source.spec != "digits":
        raise SettingsError("--sensitivity needs samples; give --data, as `autoprune search` takes")
    if fake is None:
        fake = source.outgrows_memory()
    module, notes = source.build_with_notes(fake=fake)
    examples = example_inputs(source.spec, module, data, inputs or ())
    started = time.perf_counter()
    network = verified(trace(module, examples))
    seconds = time.perf_counter() - started
    if layers is not None:
        _write_layers(model, network, layers)
    damage = sensitivity.sensitivity(network, data or "digits") if with_sensitivity else None
    if damage is not None and plot_file is not None:
        sensitivity.plot(damage, model, plot_file)
    if as_json:
        content = described(model, network, seconds)
        content |= {"sensitivity": damage.as_json()} if damage is not None else {}
        typer.echo(json.dumps(content, indent=2))
        return
    console = Console(highlight=False)
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    _show(console, model, network)
    if damage is not None:
        sensitivity.show(console, damage)


def described(model: str, network: Network, seconds: float) -> dict[str, Any]:
    """Return what ``--json`` prints.

    Args:
        model: What the user called it.
        network: The traced and verified network.
        seconds: Wall-clock time of tracing and of the trial cuts.
    """
    from autoprune.network.inputs import shapes as input_shapes

    macs_share, params_share = network.ops.prunable_shares()
    return {
        "model": model,
        "inputs": [list(shape) for shape in input_shapes(network.inputs)],
        "macs": int(network.ops.macs()[0]),
        "params": int(network.ops.params()[0]),
        "prunable_macs_share": macs_share,
        "prunable_params_share": params_share,
        "trace_seconds": seconds,
        "checked": network.checked,
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "kind": group.kind,
                "members": [
                    {"path": member.path, "dim": member.dim, "per_unit": member.per_unit}
                    for member in group.members
                ],
            }
            for group in network.groups
        ],
        "blocks": [{"name": block.name, "groups": list(block.groups)} for block in network.blocks],
        "frozen": dict(network.frozen),
        "unsupported": dict(network.unsupported),
        "unused": list(network.unused),
    }


def _write_layers(model: str, network: Network, path: Path) -> None:
    from autoprune.files import write_atomically
    from autoprune.latency.layers import rows_from_ops

    rows = rows_from_ops(network.ops)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    try:
        write_atomically(path, f"{{{json.dumps(model)}: [\n{lines}\n]}}\n")
    except OSError as error:
        raise SettingsError(f"cannot write the layer list {path}: {error.strerror}") from None


def _show(console: Console, model: str, network: Network) -> None:
    from autoprune.network.inputs import shapes as input_shapes
    from autoprune.report import text

    macs_share, params_share = network.ops.prunable_shares()
    shapes = " and ".join(map(str, input_shapes(network.inputs)))
    macs, params = int(network.ops.macs()[0]), int(network.ops.params()[0])
    console.print(
        f"{escape(model)} on inputs {shapes}: {text.count(macs)}MACs, {text.count(params)} "
        f"parameters\n{len(network.groups)} channel groups, {len(network.blocks)} removable "
        f"blocks; {text.percent(macs_share, 0)} of the MACs and {text.percent(params_share, 0)} "
        f"of the parameters can go with the channels\n{_CHECKED[network.checked]}"
    )
    if network.groups:
        console.print(_group_table(network))
    if network.blocks:
        names = [block.name for block in network.blocks]
        console.print(f"\nremovable blocks ({len(names)}): {escape(_listed(names, 6))}")
    for title, entries in (
        ("frozen", _by_reason(network.frozen)),
        (
            "operators without a rule, which freeze the channels they meet",
            [f"{name}, {count} times" for name, count in sorted(network.unsupported.items())],
        ),
        ("modules that did not run", list(network.unused)),
    ):
        if entries:
            console.print(f"\n{title}:")
            for entry in entries:
                console.print(f"  {escape(entry)}", soft_wrap=True)


def _by_reason(frozen: Mapping[str, str]) -> list[str]:
    """Return a line for each reason; reasons that differ in numbers alone count as one."""
    alike: dict[str, list[str]] = {}
    for name, reason in frozen.items():
        alike.setdefault(re.sub(r"\d[\d.e+-]*", "0", reason), []).append(name)
    lines = []
    for names in sorted(alike.values(), key=len, reverse=True):
        times = f"({len(names)} times) " if len(names) > 1 else ""
        lines.append(f"{_listed(names, 3)}: {times}{frozen[names[0]]}")
    return lines


def _listed(names: Sequence[str], limit: int) -> str:
    """Return the first names, and how many more there are up to which."""
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[: limit - 1])} and {len(names) - limit + 1} more up to {names[-1]}"


def _group_table(network: Network) -> Table:
    """Return a table of the groups; those of repeated layers share a row."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("group", overflow="fold")
    table.add_column("alike", justify="right")
    table.add_column("units", justify="right")
    table.add_column("kind")
    table.add_column("cuts (parameter, dimension)", overflow="fold")
    for groups in _alike(network.groups):
        first = groups[0]
        cuts = [f"{m.path}[{m.dim}]" for m in first.members]
        listed = ", ".join(cuts[:4]) + (f" and {len(cuts) - 4} more" if len(cuts) > 4 else "")
        name = first.name if len(groups) == 1 else f"{first.name} ... {groups[-1].name}"
        table.add_row(escape(name), str(len(groups)), str(first.size), first.kind, escape(listed))
    return table


def _alike(groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
    """Return the groups, those together that differ in the numbers of their layers alone."""
    alike: dict[tuple[object, ...], list[ChannelGroup]] = {}
    for group in groups:
        places = tuple((_numberless(m.path), m.dim, m.per_unit) for m in group.members)
        key = (_numberless(group.name), group.size, group.kind, places)
        alike.setdefault(key, []).append(group)
    return [part for same in alike.values() for part in ([same] if len(same) > 3 else _each(same))]


def _each(groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
    return [[group] for group in groups]


def _numberless(path: str) -> str:
    return re.sub(r"\d+", "#", path)
