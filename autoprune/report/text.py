"""Numbers as people read them; a number that is missing is a dash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pandas as pd

#: Stands for a number that does not apply.
MISSING = "\N{EN DASH}"
NO_BREAK = "\N{NO-BREAK SPACE}"
TIMES = "\N{MULTIPLICATION SIGN}"
_MINUS = "\N{MINUS SIGN}"
_UNITS = {"latency_ms": "ms", "memory_mb": "MB", "energy_mj": "mJ"}
_TITLES = {
    "latency_ms": "latency",
    "memory_mb": "memory",
    "energy_mj": "energy",
    "macs": "MACs",
    "params": "parameters",
}
_PREFIXES = ("", "k", "M", "G", "T", "P")


def significant(value: int | float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, never in scientific notation.

    >>> significant(9.4149), significant(0.012345), significant(1234.5), significant(0)
    ('9.41', '0.0123', '1,234', '0')
    """
    if pd.isna(value):
        return MISSING
    if value == 0:
        return "0"
    # Rounded first, so that 9.999 counts as 10.0 and not as 10.00.
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}"


def milliseconds(value: int | float) -> str:
    """Return a latency with its unit.

    >>> milliseconds(9.4149).replace(NO_BREAK, " ")
    '9.41 ms'
    """
    return MISSING if pd.isna(value) else f"{significant(value)}{NO_BREAK}ms"


def cost(value: int | float, column: str) -> str:
    """Return a cost in the unit of its column in the tables.

    >>> [cost(v, c).replace(NO_BREAK, " ") for v, c in ((3.2, "latency_ms@x"), (1.5e6, "params"))]
    ['3.20 ms', '1.50 M']
    """
    unit = _UNITS.get(column.partition("@")[0])
    if unit is None or pd.isna(value):
        return count(value)
    return f"{significant(value)}{NO_BREAK}{unit}"


def cost_unit(column: str, largest: float) -> tuple[str, float]:
    """Return the unit for values of a column up to ``largest``, and what they are multiplied with.

    >>> cost_unit("latency_ms", 20.0), cost_unit("macs", 2.5e9)
    (('ms', 1.0), ('G', 1e-09))
    """
    unit = _UNITS.get(column.partition("@")[0])
    if unit is not None:
        return unit, 1.0
    power = min(int(math.log10(max(largest, 1.0)) // 3), len(_PREFIXES) - 1)
    return _PREFIXES[power], 1000.0**-power


def cost_title(column: str) -> str:
    """Return what the costs of a column are called.

    >>> cost_title("latency_ms@jetson"), cost_title("memory_mb"), cost_title("params")
    ('latency on jetson', 'memory', 'parameters')
    """
    kind, at, device = column.partition("@")
    title = _TITLES.get(kind, kind)
    return f"{title} on {device}" if at else title


def percent(fraction: float | None, decimals: int = 1) -> str:
    """Return a fraction as a percentage; ``None`` and NaN are missing.

    >>> percent(0.91349).replace(NO_BREAK, " "), percent(None) == MISSING
    ('91.3 %', True)
    """
    if fraction is None or pd.isna(fraction):
        return MISSING
    return f"{100 * fraction:.{decimals}f}{NO_BREAK}%"


def change(new: int | float, old: int | float) -> str:
    """Return by how much ``new`` differs from ``old``, relative to ``old``.

    >>> change(143, 100).replace(NO_BREAK, " ")
    '+43 %'
    """
    if not old or pd.isna(new) or pd.isna(old):
        return MISSING
    return _signed(f"{100 * (new / old - 1):+.0f}{NO_BREAK}%")


def points(new: float, old: float) -> str:
    """Return a difference of two fractions in percentage points.

    >>> points(0.93, 0.913).replace(NO_BREAK, " ")
    '+1.7 points'
    """
    return _signed(f"{100 * (new - old):+.1f}{NO_BREAK}points")


def count(number: int | float) -> str:
    """Return a large count with three significant digits and an SI prefix.

    >>> count(1_821_000_000).replace(NO_BREAK, " "), count(512)
    ('1.82 G', '512')
    """
    if pd.isna(number):
        return MISSING
    if number < 1000:
        return f"{number:.0f}"
    power = min(int(math.log10(number) // 3), len(_PREFIXES) - 1)
    if round(number / 1000**power, 2 - int(math.log10(number) % 3)) >= 1000:
        power = min(power + 1, len(_PREFIXES) - 1)
    return f"{significant(number / 1000**power)}{NO_BREAK}{_PREFIXES[power]}"


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as rows of dotted name and value.

    >>> flat_settings({"space": {"minimum": 8}, "sampler": "ask"})
    [('space.minimum', '8'), ('sampler', 'ask')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flat_settings(value, f"{name}.")
        elif isinstance(value, str):
            rows.append((name, value))
        else:
            rows.append((name, json.dumps(value, default=str)))
    return rows


def _signed(text: str) -> str:
    """Return ``text`` with a minus sign instead of a hyphen, and zero without a sign."""
    if not any(digit in text for digit in "123456789"):
        return text.lstrip("+-")
    return text.replace("-", _MINUS, 1)
