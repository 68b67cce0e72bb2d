"""What a part of a network depends on: two plans that agree on all of that share it.

A network runs its operators in some order. What it has computed at one of them depends only on the
groups, blocks and attributes that took part until then. So a digest of what a plan says about these
is a key for everything up to there.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.network.call import tensors_in
from autoprune.network.inputs import call_model, evaluating
from autoprune.network.network import Network
from autoprune.pruning.aggregate import named_parameters
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.reads import Read
from autoprune.pruning.trails import Follower, Operator, Trail

#: Values of parameters and buffers by name.
State = Mapping[str, Tensor]


class Prefixes:
    """Keys of the parts of one network that end at its weights and its BatchNorm layers."""

    def __init__(self, network: Network, paths: Collection[str]) -> None:
        """Run the network over its example inputs and note the order of everything.

        Args:
            network: The traced network.
            paths: Parameter names of the weights; each should run once.
        """
        self.network = network
        owners = {attribute_owner(m.attribute) for g in network.groups for m in g.mirrors}
        modules = {block.name for block in network.blocks} | set(network.guards) | owners
        order = _Order(network, sorted(paths))
        with ExitStack() as stack:
            for name in modules:
                module = network.model.get_submodule(name)
                hook = module.register_forward_pre_hook(order.entering(name))
                stack.callback(hook.remove)
            stack.enter_context(evaluating(network.model))
            stack.enter_context(torch.no_grad())
            stack.enter_context(order)
            call_model(network.model, network.inputs)
        self._groups, self._entries, self.ends = order.groups, order.entries, order.ends

    def keys(self, plan: PruningPlan) -> dict[str, bytes]:
        """Return a digest for every weight and every BatchNorm, by path.

        Where two plans have the same digest they are the same network up to there: up to the
        addition that the weight's output goes into, if there is one.

        Args:
            plan: A plan that says everything, as from
                :meth:`autoprune.pruning.surgery.Surgeon.complete`.
        """
        events = sorted(self._events(plan))
        keys: dict[str, bytes] = {}
        digest, told = hashlib.blake2b(digest_size=20), 0
        for path, end in sorted(self.ends.items(), key=lambda item: item[1]):
            while told < len(events) and events[told][0] <= end:
                digest.update(repr(events[told]).encode())
                told += 1
            keys[path] = digest.digest()
        return keys

    def _events(self, plan: PruningPlan) -> list[tuple[int, str, object]]:
        """Return what a plan says, with when it first matters; what is never seen always does."""
        entered = self._entries.get
        events: list[tuple[int, str, object]] = []
        for group in self.network.groups:
            kept = plan.kept.get(group.name)
            if kept is not None and len(kept) < group.size:
                events.append((self._groups.get(group.name, 0), f"group {group.name}", kept))
        events += [(entered(name, 0), f"block {name}", False) for name in plan.dropped]
        events += [(entered(name, 0), f"guard {name}", True) for name in plan.guards]
        events += [
            (entered(attribute_owner(name), 0), f"attribute {name}", value)
            for name, value in plan.attributes.items()
        ]
        return events


def attribute_owner(attribute: str) -> str:
    """Return the path of the module that holds an attribute."""
    return attribute.rpartition(".")[0]


class _Order(Follower):
    """Counts operators and notes at which of them everything takes part first."""

    def __init__(self, network: Network, paths: Sequence[str]) -> None:
        """Index the memory of everything that belongs to a group."""
        super().__init__(network.model, paths)
        self.count = 0
        self.groups: dict[str, int] = {}
        self.entries: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self._places: defaultdict[int, set[str]] = defaultdict(set)
        buffers = dict(network.model.named_buffers(remove_duplicate=False))
        tensors = {**named_parameters(network.model), **buffers}
        for group in network.groups:
            for member in group.members:
                place = tensors[member.path].untyped_storage().data_ptr()
                self._places[place].add(group.name)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.count += 1
        for tensor in tensors_in((args, kwargs or {})):
            for group in self._places.pop(tensor.untyped_storage().data_ptr(), ()):
                self.groups.setdefault(group, self.count)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        """Return a hook that notes when a module is entered first."""

        def hook(module: nn.Module, args: Any) -> None:
            self.entries.setdefault(name, self.count + 1)

        return hook

    def on_read(self, read: Read, run: Operator) -> Tensor:
        """Note where a weight runs."""
        self.ends[read.path] = self.count
        return super().on_read(read, run)

    def on_norm(self, path: str, run: Operator) -> None:
        """Note where a BatchNorm runs."""
        self.ends[path] = self.count

    def on_sum(self, run: Operator, trails: list[Trail | None]) -> None:
        """A weight whose output is added to something is not done before that."""
        for trail in trails:
            if trail is not None:
                self.ends[trail.path] = self.count


class States:
    """States of weights for the next candidates, bounded in memory; the least recently used go."""

    def __init__(self, most_bytes: int) -> None:
        """Start empty.

        Args:
            most_bytes: Bound on what is kept.
        """
        self.most_bytes = most_bytes
        self._states: OrderedDict[tuple[str, bytes], tuple[State, ...]] = OrderedDict()
        self._bytes = 0

    def get(self, path: str, key: bytes) -> tuple[State, ...] | None:
        """Return what was kept for a weight or a BatchNorm under a key."""
        found = self._states.get((path, key))
        if found is not None:
            self._states.move_to_end((path, key))
        return found

    def put(self, path: str, key: bytes, states: tuple[State, ...]) -> None:
        """Keep states that are not kept yet."""
        if (path, key) in self._states:
            return
        self._states[path, key] = states
        self._bytes += _size(states)
        while self._bytes > self.most_bytes:
            self._bytes -= _size(self._states.popitem(last=False)[1])


def _size(states: Sequence[State]) -> int:
    return sum(tensor.nbytes for state in states for tensor in state.values())
