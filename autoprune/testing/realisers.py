"""The checks every realiser passes; subclass the suite in the plug-in's test file.

    class TestMine(RealiserSuite):
        def build(self) -> Realiser:
            return Mine()

``pytest`` then runs every check on the tiny networks of :mod:`autoprune.testing.networks`.
"""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod

import pytest
import torch
from torch import nn

from autoprune.errors import PruningError
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, Realiser
from autoprune.pruning.surgery import Surgeon
from autoprune.testing.networks import TINY_LANGUAGE_MODELS, TINY_NETWORKS, TinyNetwork, tiny
from autoprune.testing.plans import half_plan

_every_network = pytest.mark.parametrize("name", [*TINY_NETWORKS, *TINY_LANGUAGE_MODELS])


class RealiserSuite(ABC):
    """What holds for every way to realise a plan."""

    @abstractmethod
    def build(self) -> Realiser:
        """Return a fresh realiser with the same options at every call."""

    def prepared(self, case: TinyNetwork) -> Realiser:
        """Return a realiser prepared on 16 images."""
        realiser = self.build()
        realiser.prepare(case.network, case.batches(10, 6))
        return realiser

    def test_is_registered_under_its_name(self) -> None:
        """The registry builds the same class by name."""
        realiser = self.build()
        assert REALISERS[realiser.name] is type(realiser)

    @_every_network
    def test_has_the_widths_of_the_plan(self, name: str) -> None:
        """Every tensor is as large as surgery makes it, and the network runs."""
        case = tiny(name)
        plan = half_plan(case.network)
        model = self.prepared(case)(plan)
        assert _shapes(model) == _shapes(Surgeon(case.network).cut(plan))
        with torch.no_grad():
            assert model(*case.inputs).isfinite().all()

    @_every_network
    def test_leaves_the_original_as_it_was(self, name: str) -> None:
        """No value of the model changes, no hook stays, and results share nothing with it."""
        case = tiny(name)
        before = copy.deepcopy(case.model.state_dict())
        realiser = self.prepared(case)
        first, second = realiser(half_plan(case.network)), realiser(half_plan(case.network))
        for tensor in first.state_dict().values():
            tensor.zero_()
        after = case.model.state_dict()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        assert any(tensor.any() for tensor in second.state_dict().values())
        for module in case.model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks

    @_every_network
    def test_repeats_itself(self, name: str) -> None:
        """Equal plans give equal networks, from the same realiser and from one sent elsewhere."""
        case = tiny(name)
        realiser = self.prepared(case)
        plan = half_plan(case.network)
        first = realiser(plan).state_dict()
        elsewhere = pickle.loads(pickle.dumps(realiser))  # noqa: S301 - what was just written
        for other in (realiser, elsewhere):
            again = other(plan).state_dict()
            assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())

    @_every_network
    def test_reads_no_labels(self, name: str) -> None:
        """Other targets give the same network."""
        case = tiny(name)
        plan = half_plan(case.network)
        batches = case.batches(10, 6)
        found = []
        for shift in (0, 1):
            realiser = self.build()
            realiser.prepare(case.network, [(x, (y + shift) % 5) for x, y in batches])
            found.append(realiser(plan).state_dict())
        assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())

    def test_refuses_a_plan_of_another_network(self) -> None:
        """The error names what is not there."""
        with pytest.raises(PruningError, match="group 'elsewhere'"):
            self.prepared(tiny("chain"))(PruningPlan({"elsewhere": (0,)}))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
