"""What a candidate keeps: a small, replayable description of one pruned network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from autoprune.errors import PruningError
from autoprune.network.network import Network


@dataclasses.dataclass(frozen=True)
class PruningPlan:
    """Which units of each group stay and which blocks go.

    Attributes:
        kept: Sorted unit numbers per group name; a group that is absent keeps all of them.
        dropped: Names of the blocks that are replaced by the identity.
        attributes: New values of module attributes that mirror a width, by dotted path; what
            :meth:`autoprune.pruning.surgery.Surgeon.complete` fills in, so that the plan can be
            replayed without a trial cut.
        guards: Paths of modules whose own code computes widths that do not follow a cut; filled in
            like ``attributes``.
    """

    kept: dict[str, tuple[int, ...]]
    dropped: tuple[str, ...] = ()
    attributes: dict[str, int] = dataclasses.field(default_factory=dict)
    guards: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain lists and dicts."""
        return {
            "kept": {name: list(units) for name, units in self.kept.items()},
            "dropped": list(self.dropped),
            "attributes": dict(self.attributes),
            "guards": list(self.guards),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PruningPlan:
        """Return the plan that :meth:`to_json` wrote.

        Raises:
            PruningError: ``data`` is not of that form.
        """
        kept, dropped = data.get("kept"), data.get("dropped", [])
        attributes, guards = data.get("attributes", {}), data.get("guards", [])
        well_formed = (
            isinstance(kept, dict)
            and isinstance(dropped, list)
            and isinstance(attributes, dict)
            and isinstance(guards, list)
            and all(type(value) is int for value in attributes.values())
            and all(isinstance(name, str) for name in [*kept, *dropped, *attributes, *guards])
            and all(
                isinstance(units, list) and all(type(unit) is int for unit in units)
                for units in kept.values()
            )
        )
        if not well_formed or not isinstance(kept, dict):
            raise PruningError(
                "a pruning plan is {'kept': {group: [unit, ...]}, 'dropped': [block, ...], "
                "'attributes': {path: number}, 'guards': [module, ...]}, "
                f"got {str(data)[:200]}"
            )
        units_of = {name: tuple(units) for name, units in kept.items()}
        return cls(units_of, tuple(dropped), attributes, tuple(guards))

    def check(self, network: Network) -> None:
        """Check the plan against a network.

        Raises:
            PruningError: It names groups, units, blocks or modules that ``network`` does not have.
        """
        groups = {group.name: group for group in network.groups}
        blocks = {block.name for block in network.blocks}
        faults = [f"group {name!r}" for name in self.kept if name not in groups]
        faults += [f"block {name!r}" for name in self.dropped if name not in blocks]
        faults += [f"module {name!r}" for name in self.guards if name not in network.reshapes]
        if faults:
            raise PruningError(
                f"the plan names {', '.join(faults)}, which this network does not have; "
                "it was made for another architecture or another version of it"
            )
        for name, units in self.kept.items():
            group = groups[name]
            inside = all(0 <= unit < group.size for unit in units)
            if not (group.allows(len(units)) and inside and list(units) == sorted(set(units))):
                number = f"at least {group.least}"
                if group.multiple > 1:
                    number += f" and a multiple of {group.multiple}"
                raise PruningError(
                    f"the plan keeps units {list(units)[:8]} of group {name!r}; expected {number}, "
                    f"sorted, distinct, below {group.size}"
                )
