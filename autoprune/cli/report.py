"""``autoprune report``: writes a run's page again, in other formats, or of several runs at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.errors import SettingsError

if TYPE_CHECKING:
    from autoprune.report.data import ReportData

#: The file of a comparison, unless another one is asked for.
COMPARISON_FILE = "comparison.html"


class ReportFormat(StrEnum):
    """What a run can be written as."""

    HTML = "html"
    MD = "md"
    CSV = "csv"
    PARQUET = "parquet"
    SVG = "svg"
    PNG = "png"
    PDF = "pdf"


#: Names of the files in the run directory.
_FILES = {
    ReportFormat.HTML: "report.html",
    ReportFormat.MD: "report.md",
    ReportFormat.CSV: "trials.csv",
    ReportFormat.PARQUET: "trials.parquet",
    ReportFormat.SVG: "front.svg",
    ReportFormat.PNG: "front.png",
    ReportFormat.PDF: "front.pdf",
}


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    formats: Annotated[
        list[ReportFormat] | None,
        typer.Option(
            "--format",
            "-f",
            help="The page, it in Markdown, all trials, or the front as a picture; repeatable. "
            "\\[default: html]",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help=f"One page about all runs: {COMPARISON_FILE}.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder of the files, or file of a comparison. \\[default: the run directory]",
        ),
    ] = None,
) -> None:
    """Write what runs found as pages, tables and pictures, and print where they are.

    \b
    autoprune report runs/mine --format md --format svg
    autoprune report runs/a runs/b --compare
    """  # noqa: D301 - click keeps lines after a backspace as they are
    if compare and formats:
        raise SettingsError("a comparison is an HTML page; leave out --format or --compare")
    from autoprune.run.directory import RunDirectory
    from autoprune.run.results import read_results

    folders = [RunDirectory.open(run).path for run in runs]
    if compare:
        from autoprune.report.compare import write_comparison

        page = output or Path(COMPARISON_FILE)
        found = {name: read_results(f) for name, f in zip(_names(folders), folders, strict=True)}
        _written(lambda: write_comparison(found, page), page)
        return
    if output is not None and len(folders) > 1:
        raise SettingsError("--output takes the files of one run; leave it out, or --compare")
    for folder in folders:
        data, target = read_results(folder), output or folder
        target.mkdir(parents=True, exist_ok=True)
        for kind in dict.fromkeys(formats or [ReportFormat.HTML]):
            file = target / _FILES[kind]
            _written(lambda f=file, k=kind, d=data: _writer(k)(d, f), file)  # type: ignore[misc] # defaults bind the loop's values


def _writer(kind: ReportFormat) -> Callable[[ReportData, Path], None]:
    """Return what writes a format; only what it needs is imported."""
    if kind == ReportFormat.HTML:
        from autoprune.report.html import write_report

        return write_report
    if kind == ReportFormat.MD:
        from autoprune.report.markdown import write_markdown

        return write_markdown
    if kind in (ReportFormat.CSV, ReportFormat.PARQUET):
        from autoprune.report.tables import write_trials, write_trials_csv

        return write_trials_csv if kind == ReportFormat.CSV else write_trials
    from autoprune.report.plot import write_plot

    return write_plot


def _written(write: Callable[[], None], file: Path) -> None:
    """Write a file and print where it is.

    Raises:
        SettingsError: It cannot be written.
    """
    try:
        write()
    except OSError as error:
        raise SettingsError(
            f"cannot write {file}: {error.strerror}; give another --output"
        ) from None
    typer.echo(str(file))


def _names(folders: list[Path]) -> list[str]:
    """Return names that tell folders apart: as many of their last parts as that takes.

    >>> _names([Path("/a/x/run"), Path("/a/y/run"), Path("/a/z")])
    ['x/run', 'y/run', 'a/z']
    """
    deepest = max(len(folder.parts) for folder in folders)
    for count in range(1, deepest + 1):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise SettingsError("a run is named twice; a comparison needs different ones")
