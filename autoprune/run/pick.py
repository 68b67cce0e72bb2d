"""Which networks of a finished search are meant: ``--pick budget|knee|ID|all``."""

from __future__ import annotations

from autoprune.errors import RunError
from autoprune.report.data import ChosenNetwork, ReportData
from autoprune.strategy.goals import column
from autoprune.strategy.pareto import knee

#: What ``--pick`` takes, as help texts say it.
PICKS = "budget|knee|ID|all"


def picked_trials(data: ReportData, pick: str | None = None) -> tuple[int, ...]:
    """Return the numbers of the trials that ``pick`` names, the fastest network first.

    Args:
        data: What the search found.
        pick: ``"budget"`` for the most accurate network under the budget, ``"knee"`` for the
            front's knee, ``"all"`` for the front, or the number of a trial; ``None`` for the
            network that the search recommends.

    Raises:
        RunError: The run has no such network.
    """
    if pick is None or pick == "budget":
        if pick == "budget" and data.budget_ms is None:
            raise RunError("the run had no budget, so none is the best under it; pick knee")
        return (_found(data).trial,)
    if pick in ("knee", "all"):
        _found(data)
        front = data.front
        numbers = tuple(front["number"].astype(int))
        if pick == "all":
            return numbers
        costs = front[[column(name) for name in data.costs]].to_numpy(float)
        return (numbers[knee(front["accuracy"].to_numpy(), costs)],)
    return (_trial(data, pick),)


def _found(data: ReportData) -> ChosenNetwork:
    if data.chosen is None:
        raise RunError("the search found no network; see its report, and search on with --resume")
    return data.chosen


def _trial(data: ReportData, pick: str) -> int:
    """Return the trial number that ``pick`` is, of a network that was scored."""
    front = ", ".join(map(str, sorted(data.front["number"])))
    way_out = f"pick {PICKS}; the front is {front or 'empty'}"
    if not (pick.isascii() and pick.isdigit()):
        raise RunError(f"no network is called {pick!r}; {way_out}")
    rows = data.trials[data.trials["number"] == int(pick)]
    if rows.empty:
        raise RunError(f"the run has no trial {pick}; {way_out}")
    row = rows.iloc[0]
    if row["status"] != "complete":
        reason = f": {row['reason']}" if row["reason"] else ""
        raise RunError(f"trial {pick} gave no network ({row['status']}{reason}); {way_out}")
    return int(pick)
