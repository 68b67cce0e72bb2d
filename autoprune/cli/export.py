"""``autoprune export``: networks of a run as files for other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run directory, or the folder of a network."),
    ],
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="budget|knee|ID|all",
            help="Which networks of a run. \\[default: the recommended one]",
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="safetensors, onnx, torch-export, openvino or tensorrt-script; can be repeated. "
            "\\[default: onnx]",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Also write the ONNX file in 8 bits, calibrated on training samples."
        ),
    ] = False,
    calibration_samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Training samples that --int8 is calibrated on.")
    ] = 128,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where files go. \\[default: RUN/exported/TRIAL]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Data of a network's folder that lies in no run."),
    ] = None,
    fixed_batch: Annotated[
        bool,
        typer.Option(
            "--fixed-batch", help="Fix the deployment batch instead of leaving the size open."
        ),
    ] = False,
    trust_source: Annotated[
        bool, typer.Option("--trust-source", help="Run the Python code that a folder names.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every export.json as JSON.")
    ] = False,
) -> None:
    """Write networks of a run in other formats, and compare each with PyTorch on real inputs.

    autoprune export runs/mine --format onnx --format openvino --int8
    """
    from autoprune.run.exporting import export as write
    from autoprune.run.exporting import subjects

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(sentence: str) -> None:
        console.print(escape(sentence))

    contents = {}
    several = pick == "all"
    for subject in subjects(
        run,
        pick=pick,
        data=data,
        dynamic_batch=not fixed_batch,
        trust_source=trust_source,
        say=say,
    ):
        given = output / subject.name if output is not None and several else output
        folder = given or subject.folder
        say(f"network {subject.name}: {folder}")
        content = write(
            subject,
            formats or ["onnx"],
            folder=folder,
            int8=int8,
            calibration_samples=calibration_samples,
            say=say,
        )
        contents[str(folder)] = content
        if not as_json:
            _show(content, folder)
    if as_json:
        typer.echo(json.dumps(contents, indent=2))


def _show(content: dict[str, Any], folder: Path) -> None:
    """Print what was written and how it compared."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table("format", "compared in", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("difference", justify="right")
    table.add_column("accuracy, search split")
    for name, entry in content["exports"].items():
        difference, accuracy = entry["max_abs_difference"], ""
        if "accuracy" in entry:
            was, now = entry["reference_accuracy"], entry["accuracy"]
            accuracy = f"{100 * now:.2f} % (fp32 {100 * was:.2f} %)"
        shown = "" if difference is None else f"{difference:.2g}"
        table.add_row(name, entry["runtime"] or "not run", shown, accuracy)
    console.print(table)
    console.print(f"compared with PyTorch on {escape(content['compared_on'])}")
    for name, entry in content["exports"].items():
        files = " ".join(file["name"] for file in entry["files"])
        note = f"; {entry['note']}" if entry.get("note") else ""
        console.print(escape(f"{name}: {files}{note}"))
    console.print(f"written to {escape(str(folder))}")
