"""Conformance suite for models: what holds for every network that can be pruned.

A subclass in a test file gives the model and its example inputs::

    class TestMyNetwork(ModelConformance):
        def make(self) -> tuple[nn.Module, Inputs]:
            return MyNetwork(), (torch.randn(2, 3, 32, 32),)

``pytest`` then traces it once, cuts it in every way a search may, and checks that what comes out
computes, trains, reloads and exports as the original does. Small configurations keep it cheap.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils import _pytree

from autoprune.errors import ExportError
from autoprune.export.onnx import export_onnx
from autoprune.export.package import PLAN_FILE, WEIGHTS_FILE, PackageMetrics, load, save_package
from autoprune.export.program import export_program
from autoprune.network.call import tensors_in
from autoprune.network.inputs import Inputs, call_model, normalised
from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon, replay
from autoprune.pruning.verify import verified
from autoprune.testing.plans import half_of, half_plan, random_plans

#: Largest relative difference where two networks compute the same in another order.
TOLERANCE = 1e-4
#: Random candidates that every network must survive.
CANDIDATES = 5
#: Most groups and blocks that are cut one at a time.
_ALONE = 16


_fixed_or_open = pytest.mark.parametrize("dynamic_batch", [False, True], ids=["fixed", "open"])


class ModelConformance(ABC):
    """What holds for every network, whatever it is made of."""

    @abstractmethod
    def make(self) -> tuple[nn.Module, Tensor | Inputs]:
        """Return a new model and example inputs for it; torch's random numbers are seeded."""

    def test_tracing_leaves_the_model_as_it_was(self) -> None:
        """State, attributes, training flags, gradients and hooks are those of before."""
        case = _case(type(self))
        changed = [key for key in case.before if not _same(case.before[key], case.after.get(key))]
        assert not changed, changed
        assert case.after.keys() == case.before.keys()

    def test_what_is_frozen_says_why(self) -> None:
        """Every frozen name has a reason, and none can be cut as well."""
        network = _case(type(self)).network
        assert not [name for name, reason in network.frozen.items() if not reason.strip()]
        names = {group.name for group in network.groups}
        assert len(names) == len(network.groups)
        assert not names & network.frozen.keys()

    def test_runs_at_half_of_every_group(self) -> None:
        """The network with half of everything gives finite outputs of the same shapes."""
        case = _case(type(self))
        fault = _fault(case, case.half)
        assert not fault, fault

    def test_runs_at_random_candidates(self) -> None:
        """So do networks with random widths and random blocks."""
        case = _case(type(self))
        faults = [_fault(case, plan) for plan in random_plans(case.network, CANDIDATES)]
        assert not any(faults), faults

    def test_every_group_and_block_can_go_alone(self) -> None:
        """A group needs no other group cut with it, nor a block another block."""
        case = _case(type(self))
        plans = [PruningPlan({group.name: half_of(group)}) for group in _some(case.network.groups)]
        plans += [PruningPlan({}, (block.name,)) for block in _some(case.network.blocks)]
        faults = {str([*plan.kept, *plan.dropped]): _fault(case, plan) for plan in plans}
        failed = {name: fault for name, fault in faults.items() if fault}
        assert not failed, failed

    def test_runs_without_any_block(self) -> None:
        """All removable blocks can go together."""
        case = _case(type(self))
        every = tuple(block.name for block in case.network.blocks)
        fault = _fault(case, PruningPlan({}, every))
        assert not fault, fault

    def test_cutting_equals_zeroing(self) -> None:
        """Where no normalisation mixes the units, cut and zeroed networks compute the same."""
        case = _case(type(self))
        plain = {group.name for group in case.network.groups if not group.mixed}
        for plan in [case.half, *random_plans(case.network, 2)]:
            exact = PruningPlan({name: kept for name, kept in plan.kept.items() if name in plain})
            cut = _outputs(case.surgeon.cut(exact).float(), case.inputs)
            zeroed = _outputs(case.surgeon.mask(exact).float(), case.inputs)
            difference = _difference(cut, zeroed)
            assert difference <= TOLERANCE, difference

    def test_counts_are_those_of_the_pruned_network(self) -> None:
        """MACs and parameters of a candidate equal what tracing the pruned network counts."""
        case = _case(type(self))
        for plan in [case.half, *random_plans(case.network, 1)]:
            pruned = case.surgeon.cut(plan)
            widths, keep = _arrays(case.network, plan)
            ops, again = case.network.ops, trace(pruned, case.inputs).ops
            params = int(ops.params(widths, keep)[0])
            real = sum(parameter.numel() for parameter in pruned.parameters())
            assert params == real == int(again.params()[0]), (params, real)
            macs, recounted = int(ops.macs(widths, keep)[0]), int(again.macs()[0])
            assert macs == recounted, (macs, recounted)

    def test_reloads_from_its_folder(self, tmp_path: Path) -> None:
        """Weights and plan on disk, and a new model, give the same outputs bit for bit."""
        case = _case(type(self))
        save_package(
            tmp_path,
            model=case.pruned,
            network=case.network,
            plan=case.half,
            source=None,
            metrics=_METRICS,
        )
        loaded = load(tmp_path, self._other())
        assert {path.name for path in tmp_path.iterdir()} == {PLAN_FILE, WEIGHTS_FILE}
        _assert_equal(_outputs(loaded, case.inputs), case.outputs)
        assert _tied(loaded) == _tied(case.pruned)

    def test_replays_on_a_new_model(self) -> None:
        """The plan cuts a new model to the same shapes, and the state dict goes in."""
        case = _case(type(self))
        again = replay(self._other(), case.inputs, case.surgeon.complete(case.half))
        _outputs(again, case.inputs)  # makes what a model makes in its first pass
        again.load_state_dict(case.pruned.state_dict())
        _assert_equal(_outputs(again.train(), case.inputs), case.outputs)

    def test_tied_parameters_stay_tied(self) -> None:
        """Names that share a parameter in the original share one in the pruned network."""
        case = _case(type(self))
        assert _tied(case.surgeon.cut(case.widths_alone)) == _tied(case.network.model)

    def test_copies_and_modes(self) -> None:
        """A deep copy computes the same, and so does the network after a turn in train mode."""
        case = _case(type(self))
        twin = copy.deepcopy(case.pruned)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in case.pruned.parameters()}
        _assert_equal(_outputs(twin.train().eval(), case.inputs), case.outputs)

    def test_gradients_reach_what_they_reached_before(self) -> None:
        """A backward pass of the pruned network fills the gradients that the original's fills."""
        case = _case(type(self))
        pruned = case.surgeon.cut(case.widths_alone).eval()
        dense = copy.deepcopy(case.network.model)
        assert _names_with_gradient(pruned, case.inputs) == _names_with_gradient(dense, case.inputs)

    @_fixed_or_open
    def test_torch_export_works_where_it_worked(self, tmp_path: Path, dynamic_batch: bool) -> None:
        """The program of the pruned network computes the same, if the original's does."""
        self._exports(export_program, tmp_path / "network.pt2", dynamic_batch)

    @_fixed_or_open
    def test_onnx_export_works_where_it_worked(self, tmp_path: Path, dynamic_batch: bool) -> None:
        """ONNX Runtime computes the same as PyTorch, if it does for the original."""
        self._exports(export_onnx, tmp_path / "network.onnx", dynamic_batch)

    def _exports(self, export: Callable[..., object], path: Path, dynamic_batch: bool) -> None:
        case = _case(type(self))

        def tried(model: nn.Module) -> str:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    export(model, case.inputs, path, metadata={}, dynamic_batch=dynamic_batch)
            except ExportError as error:
                return str(error)[:1000]
            return ""

        fault = tried(case.pruned)
        if fault and tried(case.network.model):
            pytest.skip(f"the unpruned network does not export either: {fault}")
        assert not fault, fault

    def _other(self) -> nn.Module:
        """Return a new model whose weights are not those of the traced one."""
        model, _ = _made(type(self))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return model


@dataclasses.dataclass(frozen=True, eq=False)
class _Case:
    """One traced model, shared by the checks of its class.

    Attributes:
        network: With its verified groups and blocks.
        before: Everything about the model that tracing could disturb, before it.
        after: The same after it.
        surgeon: Cuts the network.
        half: Half of every group, and every second block, go.
        pruned: The network that remains.
        outputs: What it computes.
        shapes: Of the unpruned network's outputs.
    """

    network: Network
    before: dict[str, object]
    after: dict[str, object]
    surgeon: Surgeon
    half: PruningPlan
    pruned: nn.Module
    outputs: list[Tensor]
    shapes: list[torch.Size]

    @property
    def inputs(self) -> Inputs:
        """The example inputs."""
        return self.network.inputs

    @property
    def widths_alone(self) -> PruningPlan:
        """Half of every group goes, every block stays."""
        return PruningPlan(self.half.kept)


@functools.lru_cache(maxsize=1)
def _case(suite: type[ModelConformance]) -> _Case:
    """Return what the checks of ``suite`` share; pytest runs them one after the other."""
    model, inputs = _made(suite)
    model.train()
    for module in list(model.modules())[1::2]:
        module.eval()
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None:
        first.grad = torch.ones_like(first)
    before = _fingerprint(model)
    network = verified(trace(model, inputs))
    after = _fingerprint(model)
    model.zero_grad()
    surgeon = Surgeon(network)
    half = dataclasses.replace(
        half_plan(network), dropped=tuple(block.name for block in network.blocks[::2])
    )
    pruned = surgeon.cut(half).eval()
    shapes = [tensor.shape for tensor in _outputs(surgeon.cut(PruningPlan({})), network.inputs)]
    outputs = _outputs(pruned, network.inputs)
    return _Case(network, before, after, surgeon, half, pruned, outputs, shapes)


def _made(suite: type[ModelConformance]) -> tuple[nn.Module, Inputs]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model, inputs = suite().make()
    return model, normalised(inputs)


_METRICS = PackageMetrics(
    accuracy=None,
    loss=None,
    latency_ms=0.0,
    latency_error=0.0,
    profile="none",
    macs=0,
    params=0,
)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return every tensor that a model in eval mode computes, inputs in its precision."""
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if wanted is torch.float32:
        inputs = _pytree.tree_map_only(
            Tensor, lambda x: x.float() if x.is_floating_point() else x, inputs
        )
    with torch.no_grad():
        return list(tensors_in(call_model(model.eval(), inputs)))


def _fault(case: _Case, plan: PruningPlan) -> str:
    """Return what is wrong with a cut network, ``""`` if nothing is."""
    try:
        outputs = _outputs(case.surgeon.cut(plan), case.inputs)
    except Exception as error:  # noqa: BLE001 - a model can raise anything; it is what is reported
        return f"{type(error).__name__}: {error}"
    if [tensor.shape for tensor in outputs] != case.shapes:
        return f"shapes {[tuple(t.shape) for t in outputs]}, not {list(map(tuple, case.shapes))}"
    return "" if all(bool(torch.isfinite(t).all()) for t in outputs) else "not finite"


def _some(items: tuple[Any, ...]) -> list[Any]:
    """Return at most :data:`_ALONE` of the items, evenly spread."""
    picks = np.linspace(0, len(items) - 1, min(len(items), _ALONE)).round().astype(int)
    return [items[int(pick)] for pick in dict.fromkeys(picks)]


def _arrays(
    network: Network, plan: PruningPlan
) -> tuple[Int[np.ndarray, "1 groups"], Bool[np.ndarray, "1 blocks"]]:
    widths = [len(plan.kept.get(group.name, range(group.size))) for group in network.groups]
    keep = [block.name not in plan.dropped for block in network.blocks]
    return (
        np.array([widths], np.int64).reshape(1, -1),
        np.array([keep], bool).reshape(1, -1),
    )


def _difference(got: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """Return the largest difference relative to the largest value of each output."""
    largest = 0.0
    for left, right in zip(got, wanted, strict=True):
        assert left.shape == right.shape
        if left.numel():
            right = right.to(torch.float64)
            error = (left.to(torch.float64) - right).abs().max() / right.abs().max().clamp_min(1e-9)
            largest = max(largest, float(error))
    return largest


def _assert_equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    """Raise unless the same tensors came, bit for bit."""
    assert len(got) == len(wanted)
    differing = [
        index for index, pair in enumerate(zip(got, wanted, strict=True)) if not torch.equal(*pair)
    ]
    assert not differing, f"outputs {differing} differ by {_difference(got, wanted):.1e}"


def _tied(model: nn.Module) -> set[frozenset[str]]:
    """Return the sets of names that share a parameter."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(shared) for shared in names.values() if len(shared) > 1}


def _names_with_gradient(model: nn.Module, inputs: Inputs) -> set[str]:
    """Return the parameters that a backward pass in eval mode reaches."""
    outputs = tensors_in(call_model(model.eval(), inputs))
    loss = sum(x.float().square().mean() for x in outputs if x.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def _fingerprint(model: nn.Module) -> dict[str, object]:
    """Return everything about a model that tracing could disturb."""
    found: dict[str, object] = {"random state": torch.get_rng_state()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                found[f"attribute {path}.{name}"] = _frozen(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"tensor {name}"] = tensor.detach().clone()
        found[f"identity {name}"] = id(tensor)
        found[f"gradient {name}"] = None if tensor.grad is None else tensor.grad.clone()
    return found


def _frozen(value: object) -> object:
    """Return what a later change in place can't alter."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (dict, list, set, tuple)):
        return repr([(key, id(item)) for key, item in enumerate(value)]), len(value)
    return id(value) if not isinstance(value, (int, float, str)) else value


def _same(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return type(left) is type(right) and left == right
