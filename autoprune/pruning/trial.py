"""Cut copies of one network, run and judged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.network.call import tensors_in
from autoprune.network.inputs import Inputs, batch_size, call_model, evaluating
from autoprune.network.network import Network
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon

_HALF = (torch.float16, torch.bfloat16)

#: Largest relative difference between a pruned network and the same one with zeroed units.
TOLERANCE = 1e-4


class Trial:
    """Runs plans on a copy with lively parameters, so that no small weight can hide a fault."""

    def __init__(self, network: Network, *, seed: int) -> None:
        """Make the copy.

        Args:
            network: The traced network, left as it is.
            seed: Decides the lively parameters.
        """
        self._inputs = _widened(_few(network.model, network.inputs))
        self.model = _lively(network, self._inputs, seed)
        self._surgeon = Surgeon(dataclasses.replace(network, model=self.model))
        self._dense = self._run(self.model)

    def equals_masked(self, plan: PruningPlan) -> str:
        """Return why the pruned network differs from the masked one, ``""`` if it does not."""
        fault, outputs = self._try(plan)
        if fault:
            return fault
        expected = self._run(self._surgeon.mask(plan))
        for got, want in zip(outputs, expected, strict=True):
            scale = float(want.abs().max().clamp_min(1e-12)) if want.numel() else 1.0
            error = float((got - want).abs().max()) / scale if want.numel() else 0.0
            if error > TOLERANCE:
                return f"cutting differs from zeroing by {error:.1e}"
        return ""

    def runs(self, plan: PruningPlan) -> str:
        """Return why the pruned network does not run, ``""`` if it does."""
        return self._try(plan)[0]

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

    def _try(self, plan: PruningPlan) -> tuple[str, list[Tensor]]:
        try:
            outputs = self._run(self._surgeon.cut(plan))
        except Exception as error:  # noqa: BLE001 - any model can raise anything when cut
            first_line = str(error).splitlines()[0] if str(error) else ""
            return f"does not run when cut: {type(error).__name__}: {first_line}", []
        if [t.shape for t in outputs] != [t.shape for t in self._dense]:
            return "the output's shape changes when cut", outputs
        if not all(bool(torch.isfinite(t).all()) for t in outputs):
            return "the output is not finite when cut", outputs
        return "", outputs

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            output = call_model(model.eval(), self._inputs)
        return [t for t in tensors_in(output) if t.is_floating_point()]


def _few(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return the first two samples of a batch where the model takes them, else all of it."""
    batch = batch_size(inputs)
    few: Inputs = torch.utils._pytree.tree_map_only(
        Tensor, lambda tensor: tensor[:2] if tensor.shape[:1] == (batch,) else tensor, inputs
    )
    if batch <= 2:
        return inputs
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
            if parameter.numel() == max(parameter.shape, default=1):
                noise = torch.rand(parameter.shape, generator=generator)
                value = 0.2 * noise - 0.1 if name.endswith("bias") else 0.5 + noise
                parameter.copy_(value)
        _match_statistics(model, inputs)
    return model.eval()


def _widened(inputs: Inputs) -> Inputs:
    """Return half precision inputs in single precision: rounding must not look like a fault."""
    widened: Inputs = torch.utils._pytree.tree_map_only(
        Tensor, lambda tensor: tensor.float() if tensor.dtype in _HALF else tensor, inputs
    )
    return widened


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
