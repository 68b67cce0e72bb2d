"""The checks every importance criterion passes; subclass the suite in the plug-in's test file.

    class TestMine(CriterionSuite):
        def build(self) -> Criterion:
            return Mine()

``pytest`` then runs every check on the tiny networks of :mod:`autoprune.testing.networks`.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.errors import PruningError
from autoprune.network.groups import ChannelGroup
from autoprune.pruning.criterion import CRITERIA, Batches, Criterion
from autoprune.testing.networks import TINY_LANGUAGE_MODELS, TINY_NETWORKS, TinyNetwork, tiny

_every_network = pytest.mark.parametrize("name", [*TINY_NETWORKS, *TINY_LANGUAGE_MODELS])


class CriterionSuite(ABC):
    """What holds for every criterion, whatever its formula."""

    @abstractmethod
    def build(self) -> Criterion:
        """Return a fresh criterion with the same options at every call."""

    def test_is_registered_under_its_name(self) -> None:
        """The registry builds the same class by name."""
        criterion = self.build()
        assert CRITERIA[criterion.name] is type(criterion)

    @_every_network
    def test_scores_every_unit(self, name: str) -> None:
        """Each group gets one finite number per unit, and nothing else gets any."""
        case = tiny(name)
        scores = self.build().score(case.network, _batches(case))
        assert sorted(scores) == sorted(group.name for group in case.groups)
        for group in case.groups:
            assert scores[group.name].shape == (group.size,), group.name
            assert np.isfinite(scores[group.name]).all(), group.name
            assert len(np.unique(scores[group.name])) > 1, f"{group.name}: all units score alike"

    @_every_network
    def test_leaves_the_model_as_it_was(self, name: str) -> None:
        """Values, gradients, flags and random states are those of before, bit for bit."""
        case = tiny(name)
        case.model.train()
        case.model.get_submodule("head" if hasattr(case.model, "head") else "hidden").eval()
        parameters = list(case.model.parameters())
        parameters[0].grad = torch.ones_like(parameters[0])
        parameters[1].requires_grad_(False)
        before = _fingerprint(case.model)
        with torch.no_grad():
            self.build().score(case.network, _batches(case))
        after = _fingerprint(case.model)
        changed = [key for key, value in before.items() if not _same(value, after[key])]
        assert not changed
        assert before.keys() == after.keys()

    @_every_network
    def test_repeats_itself(self, name: str) -> None:
        """Equal calls give equal scores, on the same criterion and on a fresh one."""
        case = tiny(name)
        criterion = self.build()
        first = criterion.score(case.network, _batches(case))
        for other in (criterion, self.build()):
            again = other.score(case.network, _batches(case))
            for group, scores in first.items():
                np.testing.assert_array_equal(again[group], scores)

    @_every_network
    def test_follows_the_units(self, name: str) -> None:
        """Renumbering the units of a group renumbers its scores."""
        criterion = self._informed()
        case = tiny(name)
        network = case.network
        order = {
            group.name: np.random.default_rng(1).permutation(group.size) for group in case.groups
        }
        renumbered = dataclasses.replace(
            network, groups=tuple(_renumbered(group, order[group.name]) for group in case.groups)
        )
        plain = criterion.score(network, _batches(case))
        for group, scores in criterion.score(renumbered, _batches(case)).items():
            np.testing.assert_allclose(scores, plain[group][order[group]], rtol=1e-5)

    @_every_network
    def test_ranks_a_dead_unit_last(self, name: str) -> None:
        """A unit whose parameters are all zero is no more important than any other."""
        criterion = self._informed()
        case = tiny(name)
        for group in case.groups:
            dead = group.size - 1
            network = dataclasses.replace(case.network, model=_without(case.model, group, dead))
            scores = criterion.score(network, _batches(case))[group.name]
            assert scores[dead] == scores.min(), f"{group.name}: {scores}"
            assert (scores[:dead] > scores[dead]).any(), f"{group.name}: {scores}"

    def test_says_what_data_it_needs(self) -> None:
        """Without batches it works, or it names what is missing."""
        criterion = self.build()
        case = tiny("chain")
        if criterion.needs == "nothing":
            assert criterion.score(case.network).keys() == {"conv1", "conv2"}
        else:
            with pytest.raises(PruningError, match=f"needs {criterion.needs} and got no batches"):
                criterion.score(case.network)

    def test_reads_no_labels_it_does_not_need(self) -> None:
        """Targets change the scores only of a criterion that needs labels."""
        criterion = self.build()
        case = tiny("chain")
        batches = _batches(case)
        other = [(inputs, (targets + 1) % 5) for inputs, targets in batches]
        first = criterion.score(case.network, batches)["conv1"]
        second = criterion.score(case.network, other)["conv1"]
        assert np.array_equal(first, second) == (criterion.needs != "labels")

    def test_refuses_weights_that_are_not_finite(self) -> None:
        """A criterion that looks at the network does not turn NaN into a rank."""
        criterion = self._informed()
        case = tiny("chain")
        with torch.no_grad():
            for parameter in case.model.parameters():
                parameter.fill_(torch.nan)
        with pytest.raises(PruningError, match="not finite"):
            criterion.score(case.network, _batches(case))

    def test_accepts_a_network_without_groups(self) -> None:
        """Nothing to score is an empty result."""
        case = tiny("chain")
        network = dataclasses.replace(case.network, groups=())
        assert self.build().score(network, _batches(case)) == {}

    def _informed(self) -> Criterion:
        criterion = self.build()
        if not criterion.informed:
            pytest.skip(f"{criterion.name} does not look at the network")
        return criterion


def _batches(case: TinyNetwork) -> Batches:
    return case.batches(6, 4)


def _fingerprint(model: nn.Module) -> dict[str, object]:
    """Return everything about ``model`` and the global random states that could be disturbed."""
    found: dict[str, object] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False)["state"]["key"],
    }
    for key, value in model.state_dict().items():
        found[f"value {key}"] = value.clone()
    for key, parameter in model.named_parameters():
        found[f"identity {key}"] = id(parameter)
        found[f"trainable {key}"] = parameter.requires_grad
        found[f"gradient {key}"] = None if parameter.grad is None else parameter.grad.clone()
    for key, module in model.named_modules():
        found[f"training {key}"] = module.training
        found[f"hooks {key}"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return found


def _same(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, np.asarray(right))
    return left == right


def _renumbered(group: ChannelGroup, order: np.ndarray) -> ChannelGroup:
    members = [dataclasses.replace(m, indices=m.indices[order]) for m in group.members]
    return dataclasses.replace(group, members=tuple(members))


def _without(model: nn.Module, group: ChannelGroup, unit: int) -> nn.Module:
    """Return a copy of ``model`` in which every parameter entry of ``unit`` is zero."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for member in group.members:
            if member.path in parameters:
                where = torch.from_numpy(member.indices[unit])
                parameters[member.path].index_fill_(member.dim, where, 0.0)
    return model
