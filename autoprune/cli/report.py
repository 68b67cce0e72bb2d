"""``autoprune report``: writes a run's page again from the stored data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
) -> None:
    """Write RUN/report.html again, and print where it is."""
    from autoprune.report.html import write_report
    from autoprune.run.directory import REPORT_FILE, RunDirectory
    from autoprune.run.results import read_results

    directory = RunDirectory.open(run)
    page = directory.path / REPORT_FILE
    write_report(read_results(directory.path), page)
    typer.echo(str(page))
