"""What a search minimises beside the loss, what no candidate may exceed, and what is picked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from autoprune.errors import ProfileError

#: Kept units ``[n, groups]`` and kept blocks ``[n, blocks]`` to one number each, ``[n]``.
Measure = Callable[
    [Int[np.ndarray, "n groups"], Bool[np.ndarray, "n blocks"]], Float[np.ndarray, " n"]
]

#: The cost that every search has: the latency on the device it is for.
LATENCY = "latency"

#: Costs that a network has whatever the device; all are counted, so they are exact.
COUNTED = ("macs", "params", "memory")

#: Sums of floating-point numbers differ by less with the rows that are predicted together.
_SAME = 1e-9

_COLUMNS = {LATENCY: "latency_ms", "memory": "memory_mb", "energy": "energy_mj"}
_UNITS = {LATENCY: "ms", "memory": "MB", "energy": "mJ"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Something known of every candidate before it is evaluated, the less the better.

    Attributes:
        name: ``"latency"``, ``"latency@DEVICE"``, ``"macs"``, ``"params"``, ``"memory"``,
            ``"energy"`` or ``"energy@DEVICE"``.
        measure: Its value for many candidates at once, positive.
    """

    name: str
    measure: Measure

    def values(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return the cost of widths and kept blocks.

        Raises:
            ProfileError: The measure returned something else than one finite number per row.
        """
        if not len(widths):
            return np.zeros(0)
        values: Float[np.ndarray, " n"] = np.asarray(self.measure(widths, keep), float)
        if values.shape != (len(widths),) or not np.isfinite(values).all():
            raise ProfileError(
                f"the predictor of {self.name} should give one finite number for each of "
                f"{len(widths)} candidates, got shape {values.shape} with "
                f"{int((~np.isfinite(values)).sum())} not finite; check the device profile"
            )
        return values


@dataclasses.dataclass(frozen=True)
class Limit:
    """A cost that no candidate may exceed.

    Attributes:
        cost: The cost.
        most: Its largest value, positive.
    """

    cost: Cost
    most: float

    def share(
        self, widths: Int[np.ndarray, "n groups"], keep: Bool[np.ndarray, "n blocks"]
    ) -> Float[np.ndarray, " n"]:
        """Return the part of the limit that each candidate uses; above 1 it exceeds the limit.

        What is not counted but predicted stays a billionth below, so that no rounding is over.
        """
        margin = 1.0 if self.cost.name in COUNTED else 1.0 - _SAME
        return self.cost.values(widths, keep) / (self.most * margin)

    def __str__(self) -> str:
        """Return the limit in words."""
        return described(self.cost.name, self.most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goals:
    """What the networks of a search are judged by, as plain values.

    Attributes:
        costs: Names of what is minimised beside the loss.
        budget_ms: Latency that no network may exceed, ``None`` for no limit.
        limits: What other costs may be at most, by name.
        min_accuracy: Fraction right that a network must reach to be on the front or picked.
    """

    costs: tuple[str, ...] = (LATENCY,)
    budget_ms: float | None = None
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    min_accuracy: float | None = None

    @property
    def extra(self) -> tuple[str, ...]:
        """The costs beyond those that are known of every network, by column, each once."""
        names = dict.fromkeys((*self.costs, *self.limits))
        return tuple(name for name in names if name not in (LATENCY, "macs", "params"))


def column(name: str) -> str:
    """Return the column of tables that holds a cost.

    >>> column("latency@jetson"), column("memory"), column("macs")
    ('latency_ms@jetson', 'memory_mb', 'macs')
    """
    kind, at, device = name.partition("@")
    return f"{_COLUMNS.get(kind, kind)}{at}{device}"


def described(name: str, value: float) -> str:
    """Return a cost in words.

    >>> described("latency@jetson", 3.25), described("params", 1.5e6), described("memory", 12.0)
    ('3.25 ms latency@jetson', '1,500,000 params', '12 MB memory')
    """
    unit = _UNITS.get(name.partition("@")[0])
    return f"{value:,.0f} {name}" if unit is None else f"{value:.6g} {unit} {name}"
