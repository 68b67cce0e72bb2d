"""The one error tree: every message says what was expected, what came, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Names a message lists where there are too many to list them all.
_LISTED = 12


class AutopruneError(Exception):
    """Base of everything autoprune raises on purpose; the command line exits with code 2."""


class UnknownNameError(AutopruneError):
    """A name that no registry, file or table knows; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Store the unknown name.

        Args:
            kind: What was looked up, in the singular: ``"device profile"``.
            name: The name that came.
            known: Every name that would have been accepted.
        """
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=_LISTED, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        listed, rest = self.known, ""
        if len(listed) > 2 * _LISTED:
            listed = near or listed[:_LISTED]
            rest = f", ... ({len(self.known)} in all)"
        names = ", ".join(listed) or "none"
        super().__init__(f"no {kind} named {name!r}{hint} Known: {names}{rest}")


class SettingsError(AutopruneError):
    """Settings, a search space or another YAML file is wrong; all faults are listed at once."""


class ModelError(AutopruneError):
    """A model cannot be built, or its weights do not fit it."""


class TraceError(AutopruneError):
    """The model did not run on its example inputs."""


class PruningError(AutopruneError):
    """A plan does not fit the network it is applied to."""


class TaskError(AutopruneError):
    """A data set is missing, unreadable or not of the expected form."""


class ProfileError(AutopruneError):
    """A device profile or a table of measurements is incomplete or malformed."""


class MeasureError(AutopruneError):
    """A runtime is absent, cannot run a module, or measured too little."""


class BudgetError(AutopruneError):
    """A latency budget that no candidate of the search space can meet."""


class RunError(AutopruneError):
    """A run directory cannot be written, read or resumed."""


class ExportError(AutopruneError):
    """A network cannot be written, loaded, or does not match its export."""
