"""``autoprune inspect``: what can be removed from a model, and why the rest cannot."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autoprune.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoprune.network.network import Network

#: What classifiers of photos take where the model does not say otherwise.
_PHOTO = (3, 224, 224)


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="digits, torchvision:NAME, timm:NAME, package.module:factory or file.py:factory.",
        ),
    ] = "digits",
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Trained weights, to check that they fit.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Take the inputs from this task.")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(metavar="N,C,H,W", help="Shape of the input, batch first."),
    ] = None,
    layers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the layer list as JSON, as `calibrate` reads it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List channel groups, removable blocks, costs, and what is frozen and why."""
    from autoprune.network.source import ModelSource
    from autoprune.network.trace import trace
    from autoprune.pruning.verify import verified

    source = ModelSource.parse(model, weights=weights)
    module, notes = source.build_with_notes()
    started = time.perf_counter()
    network = verified(trace(module, _inputs(source.spec, module, data, input_shape)))
    seconds = time.perf_counter() - started
    if layers is not None:
        _write_layers(model, network, layers)
    if as_json:
        typer.echo(json.dumps(described(model, network, seconds), indent=2))
        return
    console = Console(highlight=False)
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    _show(console, model, network)


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


def _inputs(
    spec: str, module: nn.Module, data: str | None, shape: str | None
) -> tuple[Tensor, ...]:
    """Return example inputs: the task's, of the given shape, or what the model is known to take."""
    import torch

    from autoprune.tasks.load import load_task

    if data is not None and shape is not None:
        raise SettingsError("give --data or --input-shape, not both")
    if shape is not None:
        return (torch.randn(_parsed_shape(shape), generator=torch.Generator().manual_seed(0)),)
    if data is not None or spec == "digits":
        return load_task(data or "digits").example_inputs()
    configured = getattr(module, "default_cfg", None) or {}  # timm's
    size = tuple(configured.get("input_size", _PHOTO))
    return (torch.randn((1, *size), generator=torch.Generator().manual_seed(0)),)


def _parsed_shape(shape: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in shape.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise SettingsError(
            f"--input-shape takes positive whole numbers such as 1,3,224,224, got {shape!r}"
        )
    return sizes


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
        "of the parameters can go with the channels"
    )
    if network.groups:
        console.print(_group_table(network))
    if network.blocks:
        console.print("\nremovable blocks: " + escape(", ".join(b.name for b in network.blocks)))
    for title, entries in (
        ("frozen", [f"{name}: {reason}" for name, reason in network.frozen.items()]),
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


def _group_table(network: Network) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right")
    table.add_column("kind")
    table.add_column("cuts (parameter, dimension)", overflow="fold")
    for group in network.groups:
        cuts = [f"{m.path}[{m.dim}]" for m in group.members]
        listed = ", ".join(cuts[:4]) + (f" and {len(cuts) - 4} more" if len(cuts) > 4 else "")
        table.add_row(escape(group.name), str(group.size), group.kind, escape(listed))
    return table
