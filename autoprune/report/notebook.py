"""What a notebook shows of a run."""

from __future__ import annotations

from markupsafe import Markup

from autoprune.report import figures
from autoprune.report.data import ReportData
from autoprune.report.html import environment, packaged
from autoprune.strategy.goals import column

#: Rows of the table.
_SHOWN = 20


def notebook_html(data: ReportData, heading: str, *, recommended: bool) -> str:
    """Return the front as a chart and a table, for the output of a cell.

    Args:
        data: The run.
        heading: What stands above where no network is recommended.
        recommended: Say what the recommended network is worth.
    """
    # Its own variables, and rules for what is inside it alone.
    style = packaged("chart.css").replace(":root", "&")
    return (
        environment()
        .get_template("notebook.html.j2")
        .render(
            data=data,
            heading=heading,
            chosen=data.chosen_facts if recommended else None,
            figure=figures.front(data, column(data.costs[0])),
            rows=figures.selectable(data),
            extra=[name for name in data.extra if name in data.dense.extra],
            shown=_SHOWN,
            style=Markup(style),
        )
    )
