"""Cut copies of one network, run and judged."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.network.call import tensors_in
from autoprune.network.fake import is_fake, running
from autoprune.network.inputs import Inputs, batch_size, call_model, evaluating, first_samples
from autoprune.network.network import Network
from autoprune.pruning.decisions import Decision, Decisions, agree, grounds
from autoprune.pruning.guards import Guarded
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon

_HALF = (torch.float16, torch.bfloat16)

#: Largest relative difference between a pruned network and the same one with zeroed units.
TOLERANCE = 2e-6

#: Larger differences than the tolerance may be rounding up to here: many normalisations amplify it.
_ROUNDING = 1e-2

#: What passes as rounding where the code insists on single precision and nothing better is known.
_UNSURE = 1e-4


class Trial:
    """Runs plans on a copy with lively parameters, so that no small weight can hide a fault."""

    def __init__(self, network: Network, *, seed: int) -> None:
        """Make the copy.

        Args:
            network: The traced network, left as it is.
            seed: Decides the lively parameters.
        """
        self.by_shape = is_fake(network.model)
        # In single precision: rounding must not look like a fault.
        few = _few(network.model, network.inputs)
        self._inputs = _converted(few, _HALF, torch.float32)
        self.model = _lively(network, self._inputs, seed)
        #: Modules whose code computed wrong widths in a network that was right with them corrected.
        self.guards: set[str] = set()
        everywhere = tuple(network.reshapes)
        self._surgeon = Surgeon(dataclasses.replace(network, model=self.model, guards=everywhere))
        self._dense = self._run(self.model)

    def equals_masked(self, plan: PruningPlan) -> str:
        """Return why the pruned network differs from the masked one, ``""`` if it does not.

        A difference that could be the rounding of a deep network is looked at in double precision.
        """
        pruned = self._surgeon.cut(plan)
        if self.by_shape:
            fault, got = self._try(pruned)
            return self._judged(pruned, fault or _misshapen(got, self._dense))
        fault, error = self._unequal(pruned, plan, torch.float32)
        if TOLERANCE < error < _ROUNDING:
            closer, exact = self._unequal(pruned, plan, torch.float64)
            if exact or not closer:
                fault = closer
            elif error <= _UNSURE:
                fault = ""
        return self._judged(pruned, fault)

    def _unequal(
        self, pruned: nn.Module, plan: PruningPlan, dtype: torch.dtype
    ) -> tuple[str, float]:
        """Return what is wrong beside the masked network, and the relative error of the numbers.

        Where both decide differently by the same numbers, the pruned one is run once more with the
        decisions of the masked one.
        """
        fault, got = self._try(pruned, dtype=dtype)
        if fault:
            return fault, 0.0
        want = self._run(self._surgeon.mask(plan), dtype=dtype)
        if not agree(got.made, want.made):
            fault, got = self._try(pruned, want.made, dtype=dtype)
        fault = fault or _misshapen(got, want)
        if fault:
            return fault, 0.0
        error = _difference(got, want)
        return ("" if error <= TOLERANCE else f"cutting differs from zeroing by {error:.1e}"), error

    def runs(self, plan: PruningPlan) -> str:
        """Return why the pruned network does not run, ``""`` if it does."""
        pruned = self._surgeon.cut(plan)
        fault, got = self._try(pruned, self._dense.made)
        return self._judged(pruned, fault or _misshapen(got, self._dense))

    def corrected(self, plan: PruningPlan) -> set[str]:
        """Return the modules whose own code computes wrong widths in a network that runs."""
        pruned = self._surgeon.cut(plan)
        self._run(pruned)
        return _corrected(pruned)

    def _judged(self, pruned: nn.Module, fault: str) -> str:
        """Return the fault; without one the network's corrections have proved right."""
        if not fault:
            self.guards |= _corrected(pruned)
        return fault

    def attributes_read(self) -> dict[str, int]:
        """Return the whole numbers that modules read from themselves while running, by path."""
        seen: dict[int, set[str]] = {}
        with _watched(self.model, seen):
            self._run(self.model)
        values: dict[str, int] = {}
        for path, module in self.model.named_modules():
            for name in sorted(seen.get(id(module), ())):
                dotted = f"{path}.{name}" if path else name
                value = module.__dict__[name]
                if type(value) is int:
                    values[dotted] = value
                else:
                    values |= {f"{dotted}[{i}]": v for i, v in enumerate(value) if type(v) is int}
        return values

    def _try(
        self,
        pruned: nn.Module,
        given: Sequence[Decision] = (),
        *,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[str, _Pass]:
        """Return what is wrong with a pass through a pruned network, and the pass."""
        try:
            got = self._run(pruned, given, dtype=dtype)
        except Exception as error:  # noqa: BLE001 - any model can raise anything when cut
            first_line = str(error).splitlines()[0] if str(error) else ""
            return f"does not run when cut: {type(error).__name__}: {first_line}", _Pass([], [])
        if not all(bool(torch.isfinite(t).all()) for t in got.outputs if not t.is_meta):
            return "the output is not finite when cut", got
        return "", got

    def _run(
        self,
        model: nn.Module,
        given: Sequence[Decision] = (),
        *,
        dtype: torch.dtype = torch.float32,
    ) -> _Pass:
        decisions, inputs = Decisions(given), self._inputs
        if dtype is torch.float64:
            model, inputs = model.double(), _converted(inputs, (torch.float32,), dtype)
        # Without values nothing is decided by them.
        mode = running(model) if self.by_shape else decisions
        with torch.no_grad(), mode:
            output = call_model(model.eval(), inputs)
        return _Pass([t for t in tensors_in(output) if t.is_floating_point()], decisions.made)


def _corrected(pruned: nn.Module) -> set[str]:
    return {path for path, m in pruned.named_modules() if isinstance(m, Guarded) and m.corrected}


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass through a network: its floating-point outputs and what it decided on the way."""

    outputs: list[Tensor]
    made: list[Decision]


def _misshapen(got: _Pass, want: _Pass) -> str:
    if [t.shape for t in got.outputs] != [t.shape for t in want.outputs]:
        return "the output's shape changes when cut"
    return ""


def _difference(got: _Pass, want: _Pass) -> float:
    """Return the largest relative error of the outputs and of what was decided by."""
    worst = 0.0
    for ours, theirs in [
        *zip(got.outputs, want.outputs, strict=True),
        *grounds(got.made, want.made),
    ]:
        if theirs.numel() and not torch.equal(ours, theirs):
            scale = float(theirs.abs().max().clamp_min(1e-12))
            error = float((ours - theirs).abs().max()) / scale
            worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst


def _few(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return the first two samples of a batch where the model takes them, else all of it."""
    if batch_size(inputs) <= 2:
        return inputs
    few = first_samples(inputs, 2)
    try:
        with torch.no_grad(), evaluating(model):
            call_model(model, few)
    except Exception:  # noqa: BLE001 - any model can raise anything; then it gets what it was made for
        return inputs
    return few


def _lively(network: Network, inputs: Inputs, seed: int) -> nn.Module:
    """Return a copy in single precision through which every channel visibly reaches the output."""
    model = Surgeon(network).cut(PruningPlan({}))
    if any(tensor.dtype in _HALF for tensor in model.parameters()):
        model = model.float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() == max(parameter.shape, default=1) and not parameter.is_meta:
                noise = torch.rand(parameter.shape, generator=generator)
                value = 0.2 * noise - 0.1 if name.endswith("bias") else 0.5 + noise
                parameter.copy_(value)
        _match_statistics(model, inputs)
    return model.eval()


def _converted(inputs: Inputs, dtypes: Collection[torch.dtype], to: torch.dtype) -> Inputs:
    """Return inputs whose tensors of some types are of another."""
    converted: Inputs = torch.utils._pytree.tree_map_only(
        Tensor, lambda tensor: tensor.to(to) if tensor.dtype in dtypes else tensor, inputs
    )
    return converted


def _match_statistics(model: nn.Module, inputs: Inputs) -> None:
    """Give every BatchNorm the statistics of its own input, so that activations keep scale."""

    def measure(module: Any, args: tuple[Any, ...]) -> None:
        dims = [dim for dim in range(args[0].ndim) if dim != 1]
        module.running_mean.copy_(args[0].mean(dims))
        module.running_var.copy_(args[0].var(dims, correction=0) + 1e-3)

    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]
    handles = [module.register_forward_pre_hook(measure) for module in norms]
    with running(model):
        call_model(model.eval(), inputs)
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def _watched(model: nn.Module, seen: dict[int, set[str]]) -> Iterator[None]:
    """Note under a module's id which of its numbers and sequences of numbers are read."""
    classes = {module: type(module) for module in model.modules()}
    for module, cls in classes.items():
        module.__class__ = _spy(cls, seen)
    try:
        yield
    finally:
        for module, cls in classes.items():
            module.__class__ = cls


def _spy(cls: type[nn.Module], seen: dict[int, set[str]]) -> type[nn.Module]:
    def get(self: nn.Module, name: str) -> Any:
        value = cls.__getattribute__(self, name)
        if type(value) in (int, tuple, list) and name in self.__dict__:
            seen.setdefault(id(self), set()).add(name)
        return value

    return type(cls.__name__, (cls,), {"__getattribute__": get, "__module__": cls.__module__})
