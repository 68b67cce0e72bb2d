"""Cuts every group for real before it is offered: what does not hold is frozen with its reason."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from autoprune.network.groups import Block, ChannelGroup, Mirror
from autoprune.network.network import Network
from autoprune.pruning.mirrors import MirrorGuesses
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.trial import Trial


@dataclasses.dataclass(frozen=True)
class _Family:
    """Groups of repeated layers, which are tried together."""

    name: str
    groups: list[ChannelGroup]


#: Fewest and most draws of units that stay; more follow only while the last contradicts the others.
FEWEST_DRAWS, MOST_DRAWS = 3, 7

Item = TypeVar("Item", _Family, Block)


def verified(network: Network, *, seed: int = 0) -> Network:
    """Return the network with every group and block that fails a real cut frozen.

    All groups are cut at once, several times by different numbers of units, and only where that
    fails are the culprits searched for, by halving.
    Where no normalisation mixes channels, the pruned network must equal the one with the same units
    zeroed (relative error below :data:`~autoprune.pruning.trial.TOLERANCE`); where one does, and
    for blocks, it must run and give finite values of the same shape. Attributes that mirror a width
    (``num_heads``, sizes of a split) are found as whole numbers that the network reads and that the
    group's width explains; the cut that works with them is the proof. Numbers that a module's code
    computes by itself and hands to reshaping calls are corrected; modules that need it are noted.
    Where weights have no values, shapes are all that is compared; ``checked`` says so.

    Args:
        network: A traced network.
        seed: Decides which units are cut and the parameters of the trial copy.
    """
    trial = Trial(network, seed=seed)
    bench = _Bench(network, trial)
    generator = np.random.default_rng(seed)
    groups: Sequence[ChannelGroup] = network.groups
    frozen: dict[str, str] = {}
    for number in range(MOST_DRAWS):
        bench.draw(generator, whole=number > 0)
        mirrors = bench.mirrors
        good, bad = bench.sift((), [group for group in groups if not group.mixed], exact=True)
        groups, worse = bench.sift(good, [group for group in groups if group.mixed], exact=False)
        frozen |= bad | worse
        if not number:
            bench.spare(groups)
        if number + 1 >= FEWEST_DRAWS and not (bad or worse) and mirrors == bench.mirrors:
            break

    def droppable(blocks: Sequence[Block]) -> str:
        return trial.runs(PruningPlan({}, tuple(block.name for block in blocks)))

    _, stuck = _sieve((), network.blocks, droppable)
    result = _without(bench.mended(), frozen, stuck)
    return dataclasses.replace(result, checked="shapes" if trial.by_shape else "values")


class _Bench:
    """Cuts groups together and finds for each the attributes that must follow."""

    def __init__(self, network: Network, trial: Trial) -> None:
        self._network, self._trial = network, trial
        self._kept: dict[str, tuple[int, ...]] = {}
        guesses = MirrorGuesses(network, trial.attributes_read())
        self._attempts = {group.name: guesses.of(group) for group in network.groups}
        self._mirrors = {name: attempts[0] for name, attempts in self._attempts.items()}

    @property
    def mirrors(self) -> dict[str, tuple[Mirror, ...]]:
        """The attributes that follow each group, as far as is known."""
        return dict(self._mirrors)

    def draw(self, generator: np.random.Generator, *, whole: bool) -> None:
        """Draw the units that stay in the next cuts.

        Groups of one size keep different numbers as far as there are any, so that none passes for
        another.

        Args:
            generator: Source of chance.
            whole: Whether some groups are not cut.
        """
        counts: dict[tuple[int, int, int], Iterator[int]] = {}
        self._kept = {}
        for group in self._network.groups:
            alike = (group.size, group.least, group.multiple)
            if alike not in counts:
                counts[alike] = itertools.cycle(generator.permutation(_widths(group, whole=whole)))
            kept = generator.choice(group.size, next(counts[alike]), replace=False)
            self._kept[group.name] = tuple(int(unit) for unit in np.sort(kept))

    def sift(
        self, accepted: Sequence[ChannelGroup], groups: Sequence[ChannelGroup], *, exact: bool
    ) -> tuple[list[ChannelGroup], dict[str, str]]:
        """Return the groups that work together, and why the others cannot be cut.

        Args:
            accepted: Groups known to work.
            groups: Groups to add.
            exact: Whether cutting must equal zeroing, or only run.
        """
        judge = self._trial.equals_masked if exact else self._trial.runs

        def fault(together: Sequence[ChannelGroup]) -> str:
            return judge(self._plan(together))

        families: dict[tuple[object, ...], list[ChannelGroup]] = {}
        for group in groups:
            families.setdefault(self._alike(group), []).append(group)

        def fault_of_families(together: Sequence[_Family]) -> str:
            return fault([*accepted, *(group for family in together for group in family.groups)])

        works, fails = _sieve(
            (), [_Family(str(i), f) for i, f in enumerate(families.values())], fault_of_families
        )
        good = [*accepted, *(group for family in works for group in family.groups)]
        frozen: dict[str, str] = {}
        for number, members in enumerate(families.values()):
            if str(number) in fails:
                good, reasons = self._sift_family(good, members, fault)
                frozen |= reasons
        return good, frozen

    def _sift_family(
        self,
        good: list[ChannelGroup],
        members: list[ChannelGroup],
        fault: Callable[[Sequence[ChannelGroup]], str],
    ) -> tuple[list[ChannelGroup], dict[str, str]]:
        """Return ``good`` with those of some alike groups that work, and why the others do not.

        Where neither the first nor the last of them can be cut, the others are not tried.
        """
        ends = members[:1] if len(members) == 1 else [members[0], members[-1]]
        reasons = [self._try_attributes(group, good, fault) for group in ends]
        if all(reasons):
            for group in members:
                self._mirrors[group.name] = ()
            return good, {group.name: reasons[0] for group in members}
        frozen = {}
        for group in members:
            reason = self._try_attributes(group, good, fault)
            if reason:
                frozen[group.name] = reason
            else:
                good.append(group)
        return good, frozen

    def spare(self, groups: Sequence[ChannelGroup]) -> None:
        """Leave every attribute as it is without which ``groups`` can be cut as well.

        What sets a module's numbers wrong goes first, then what makes no difference to them. Later
        draws are the proof that nothing is missing.
        """
        if not any(self._mirrors[group.name] for group in groups):
            return
        wrong = self._trial.corrected(self._plan(groups))
        families: dict[tuple[object, ...], list[ChannelGroup]] = {}
        for group in groups:
            families.setdefault(self._alike(group), []).append(group)
        for strictly in (True, False):
            for members in families.values():
                for name in sorted({_last(m) for g in members for m in self._mirrors[g.name]}):
                    wrong = self._spare_one(groups, members, name, wrong, strictly=strictly)
        self._trial.guards = wrong

    def _spare_one(
        self,
        groups: Sequence[ChannelGroup],
        members: Sequence[ChannelGroup],
        name: str,
        wrong: set[str],
        *,
        strictly: bool,
    ) -> set[str]:
        """Leave attributes called ``name`` as they are, and return which modules are wrong then.

        Args:
            groups: What is cut.
            members: The groups that the attributes follow.
            name: Last part of their paths.
            wrong: Modules that compute wrong widths with the attributes.
            strictly: Whether their own modules are among these, and fewer must be without them.
        """
        before = dict(self._mirrors)
        owners = set()
        for group in members:
            own = {member.path.rpartition(".")[0] for member in group.members}
            gone = [m for m in before[group.name] if _last(m) == name]
            if not strictly:  # a module that holds what is cut says by it how wide its tensors are
                gone = [m for m in gone if m.attribute.rpartition(".")[0] not in own]
            owners |= {mirror.attribute.rpartition(".")[0] for mirror in gone}
            self._mirrors[group.name] = tuple(m for m in before[group.name] if m not in gone)
        if bool(owners & wrong) is strictly and self._works(groups):
            after = self._trial.corrected(self._plan(groups))
            if after < wrong or (not strictly and after == wrong):
                return after
        self._mirrors = before
        return wrong

    def _works(self, groups: Sequence[ChannelGroup]) -> bool:
        """Return whether groups can be cut with the attributes that are set now."""
        exact = [group for group in groups if not group.mixed]
        fault = self._trial.equals_masked(self._plan(exact)) if exact else ""
        return not (fault or self._trial.runs(self._plan(groups)))

    def mended(self) -> Network:
        """Return the network that knows the attributes and modules that must follow its groups."""
        groups = tuple(
            dataclasses.replace(group, mirrors=self._mirrors[group.name])
            for group in self._network.groups
        )
        return dataclasses.replace(
            self._network, groups=groups, guards=tuple(sorted(self._trial.guards))
        )

    def _try_attributes(
        self,
        group: ChannelGroup,
        good: Sequence[ChannelGroup],
        fault: Callable[[Sequence[ChannelGroup]], str],
    ) -> str:
        """Find attributes with which the group can be cut; return why not if there are none."""
        reason = ""
        for attempt in self._attempts[group.name]:
            self._mirrors[group.name] = attempt
            current = fault([*good, group])
            if not current:
                return ""
            if not attempt:
                reason = current
        self._mirrors[group.name] = ()
        return reason

    def _alike(self, group: ChannelGroup) -> tuple[object, ...]:
        """Return what the groups of repeated layers have in common."""
        attributes = {m.attribute for attempt in self._attempts[group.name] for m in attempt}
        last_names = {attribute.rpartition(".")[2] for attribute in attributes}
        members = [(m.path.rpartition(".")[2], m.dim, m.per_unit) for m in group.members]
        return group.size, frozenset(last_names), tuple(members)

    def _plan(self, groups: Sequence[ChannelGroup]) -> PruningPlan:
        values: dict[str, int] = {}
        for group in groups:
            removed = group.size - len(self._kept[group.name])
            for mirror in self._mirrors[group.name]:
                before = values.get(mirror.attribute, mirror.value)
                values[mirror.attribute] = before - mirror.per_unit * removed
        return PruningPlan({g.name: self._kept[g.name] for g in groups}, (), values)


def _last(mirror: Mirror) -> str:
    """Return an attribute's own name, the same in all repeated layers."""
    return mirror.attribute.rpartition(".")[2]


def _widths(group: ChannelGroup, *, whole: bool) -> list[int]:
    """Return how many units a trial may keep: about half, or all where ``whole`` groups are due."""
    middle = range(-(-group.size // 3), 3 * group.size // 4 + 1)
    allowed = [width for width in middle if group.allows(width) and width < group.size]
    allowed = allowed or [min(filter(group.allows, range(1, group.size + 1)))]
    return [*allowed, *[group.size] * max(len(allowed) // 3, 1)] if whole else allowed


def _sieve(
    accepted: Sequence[Item], items: Sequence[Item], fault: Callable[[Sequence[Item]], str]
) -> tuple[list[Item], dict[str, str]]:
    """Return ``accepted`` with every item that works together with it, and why the others do not.

    Args:
        accepted: Items known to work together.
        items: Items to add.
        fault: Says what is wrong with a set of items, ``""`` when nothing is.
    """
    if not items:
        return list(accepted), {}
    together = list(accepted) + list(items)
    reason = fault(together)
    if not reason:
        return together, {}
    if len(items) == 1:
        return list(accepted), {items[0].name: reason}
    middle = len(items) // 2
    accepted, first = _sieve(accepted, items[:middle], fault)
    accepted, second = _sieve(accepted, items[middle:], fault)
    return accepted, first | second


def _without(network: Network, groups: dict[str, str], blocks: dict[str, str]) -> Network:
    """Return the network with some groups and blocks frozen."""
    group_numbers = {i for i, group in enumerate(network.groups) if group.name in groups}
    block_numbers = {i for i, block in enumerate(network.blocks) if block.name in blocks}
    return dataclasses.replace(
        network,
        groups=tuple(group for group in network.groups if group.name not in groups),
        blocks=tuple(
            dataclasses.replace(
                block, groups=tuple(name for name in block.groups if name not in groups)
            )
            for block in network.blocks
            if block.name not in blocks
        ),
        ops=network.ops.without(group_numbers, block_numbers),
        frozen=network.frozen | groups | {f"block {name}": why for name, why in blocks.items()},
    )
