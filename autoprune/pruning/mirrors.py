"""Which attributes may mirror a group's width: guesses that a trial cut confirms or refutes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autoprune.network.groups import ChannelGroup, Mirror
from autoprune.network.network import Network
from autoprune.pruning.mend import mender

#: Most combinations of attributes that are tried for one group.
ATTEMPTS = 24


class MirrorGuesses:
    """Sets of attributes that may follow a group's width, the likeliest first."""

    def __init__(self, network: Network, read: Mapping[str, int]) -> None:
        """Take what the network reads while it runs.

        Args:
            network: The traced network.
            read: Every whole number that a module reads from itself, by dotted path.
        """
        modules = dict(network.model.named_modules())
        known = {path for path, module in modules.items() if mender(module) is not None}
        self._read = {
            attribute: value
            for attribute, value in read.items()
            if value > 1 and attribute.rpartition(".")[0] not in known
        }
        self._shapes = {
            name: tuple(tensor.shape)
            for name, tensor in [*network.model.named_parameters(), *network.model.named_buffers()]
        }
        self._multiplicities: dict[int, set[int]] = {}
        for op in network.ops.ops:
            for dim in (op.cin, op.cout, op.groups):
                for number, multiplicity in dim.terms:
                    self._multiplicities.setdefault(number, set()).add(multiplicity)
        self._numbers = {group.name: i for i, group in enumerate(network.groups)}
        self._local = {
            mirror.attribute: group.name
            for group in network.groups
            for mirror in self._all_of(group)
            if _within(group, mirror.attribute.rpartition(".")[0])
        }

    def of(self, group: ChannelGroup) -> list[tuple[Mirror, ...]]:
        """Return what to try for one group, in order; the empty set is always among it.

        An attribute that a group within its module explains is first left to that group.
        """
        around = _around(group)
        mirrors = self._all_of(group)
        near = [m for m in mirrors if m.attribute.rpartition(".")[0] in around]
        inside = [m for m in near if m.attribute.rpartition(".")[0] != ""]
        own = [m for m in inside if self._local.get(m.attribute, group.name) == group.name]
        attempts: list[tuple[Mirror, ...]] = [tuple(own), tuple(inside), (), tuple(near)]
        attempts += [tuple(mirrors)]
        attempts += [(mirror,) for mirror in near]
        attempts += [tuple(m for m in inside if m is not left_out) for left_out in inside]
        return _distinct(attempts)[:ATTEMPTS]

    def _all_of(self, group: ChannelGroup) -> list[Mirror]:
        return [m for attribute in self._read for m in self._mirror(group, attribute)]

    def _mirror(self, group: ChannelGroup, attribute: str) -> Iterable[Mirror]:
        """Yield the mirror that explains an attribute's value by the group's width, if one does."""
        value = self._read[attribute]
        multiplicities = {1, *self._multiplicities.get(self._numbers[group.name], ())}
        multiplicities |= {member.per_unit for member in group.members}
        if value % group.size == 0 and value // group.size in multiplicities:
            yield Mirror(attribute, value, value // group.size)
            return
        for member in group.members:
            if self._shapes[member.path][member.dim] == value:
                yield Mirror(attribute, value, member.per_unit)
                return


def _within(group: ChannelGroup, path: str) -> bool:
    """Return whether all that a group cuts is inside one module, not the whole network."""
    return bool(path) and all(member.path.startswith(f"{path}.") for member in group.members)


def _around(group: ChannelGroup) -> set[str]:
    """Return the paths of the modules that own or contain what the group cuts."""
    paths = set()
    for member in group.members:
        path = member.path.rpartition(".")[0]
        while path:
            paths.add(path)
            path = path.rpartition(".")[0]
    return {"", *paths}


def _distinct(attempts: Sequence[tuple[Mirror, ...]]) -> list[tuple[Mirror, ...]]:
    return list(dict.fromkeys(attempts))
