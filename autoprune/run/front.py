"""The Pareto front of a finished search, for programs and notebooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import pandas as pd

from autoprune.report.data import (
    ChosenNetwork,
    NetworkFacts,
    ProfileFacts,
    ReportData,
    RunFacts,
    trial_table,
)
from autoprune.report.tables import FRONT_COLUMNS
from autoprune.strategy.goals import LATENCY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontPoint(NetworkFacts):
    """One network of the Pareto front.

    Attributes:
        trial: Number of its trial.
    """

    trial: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ParetoFront(Sequence[FrontPoint]):
    """Networks that no other of the search beats, the fastest first.

    ``front[0]`` is a network, ``front["accuracy"]`` a column of the table and
    ``front[["trial", "accuracy"]]`` some of them.

    Attributes:
        points: The networks.
        dense: The network before pruning.
        device: The device profile.
        budget_ms: The latency budget, ``None`` for none.
        best: The recommended network, ``None`` for none.
        costs: Names of what is minimised beside the loss.
    """

    points: tuple[FrontPoint, ...]
    dense: NetworkFacts
    device: ProfileFacts
    budget_ms: float | None = None
    best: FrontPoint | None = None
    costs: tuple[str, ...] = (LATENCY,)

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.points)

    @overload
    def __getitem__(self, key: int) -> FrontPoint: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[FrontPoint, ...]: ...
    @overload
    def __getitem__(self, key: str) -> pd.Series: ...
    @overload
    def __getitem__(self, key: list[str]) -> pd.DataFrame: ...
    def __getitem__(
        self, key: int | slice | str | list[str]
    ) -> FrontPoint | tuple[FrontPoint, ...] | pd.Series | pd.DataFrame:
        """Return a network, some of them, or columns of the table."""
        return self.to_pandas()[key] if isinstance(key, (str, list)) else self.points[key]

    def __str__(self) -> str:
        """Return the table."""
        return self.to_pandas().to_string(index=False)

    def to_pandas(self) -> pd.DataFrame:
        """Return the networks with the columns of ``front.csv``."""
        columns = [*FRONT_COLUMNS, *self.dense.extra]
        return pd.DataFrame([point.flat() for point in self.points], columns=columns)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw accuracy against predicted latency with matplotlib, and return the axes.

        Args:
            ax: Where to draw; ``None`` makes a new figure.

        Raises:
            ExportError: matplotlib is not installed.
        """
        from autoprune.report.plot import plot_front

        return plot_front(self.report(), ax)

    def _repr_html_(self) -> str:
        """Return the front as a notebook shows it."""
        from autoprune.report.notebook import notebook_html

        heading = f"{len(self)} networks on the Pareto front"
        return notebook_html(self.report(), heading, recommended=False)

    def report(self) -> ReportData:
        """Return what charts are drawn from: these networks alone, nothing of the run."""
        shown = {point.trial: (point, True) for point in self.points}
        if self.best is not None:
            shown.setdefault(self.best.trial, (self.best, False))
        rows = [
            {k: v for k, v in point.flat().items() if k != "trial"}
            | {"number": trial, "status": "complete", "on_front": on_front}
            for trial, (point, on_front) in shown.items()
        ]
        return ReportData(
            model_name="",
            profile=self.device,
            budget_ms=self.budget_ms,
            costs=self.costs,
            dense=self.dense,
            trials=trial_table(rows, extra=tuple(self.dense.extra)),
            hypervolume=(0.0,) * len(rows),
            chosen=None if self.best is None else ChosenNetwork(trial=self.best.trial, widths=()),
            run=RunFacts(settings={}, versions={}, seed=0),
        )
