"""What happens to the output of a weight until it is added to another stream.

Behind a convolution or a linear layer come, as a rule, a BatchNorm, reshapes, a layer scale, and
then the addition of a residual. All of that is affine, channel by channel, so a wish about the sum
can be told as a wish about the weight's own output. A :class:`Trail` is followed through the ATen
operators of a forward pass, whatever modules they come from.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from autoprune.network.call import base_name
from autoprune.pruning.aggregate import named_parameters
from autoprune.pruning.reads import Read, Weights

_Undo = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Step:
    """One operator of a trail.

    Attributes:
        redo: Runs it again on another input.
        undo: Puts a tensor of its output's layout back into that of its input.
        scale: What it multiplies each position by, in its output's layout; ``None`` for one.
        norm: Path of the module, where it is a BatchNorm.
    """

    redo: Callable[[Tensor], Tensor]
    undo: _Undo
    scale: Shaped[Tensor, "..."] | None = None
    norm: str | None = None


@dataclasses.dataclass(frozen=True)
class Trail:
    """The way of one weight's output through the operators behind it.

    Attributes:
        path: Parameter name of the weight.
        steps: What was done to its output so far.
    """

    path: str
    steps: tuple[Step, ...] = ()

    @property
    def norm(self) -> str | None:
        """Path of the BatchNorm on the way, if there is one."""
        return next((step.norm for step in self.steps if step.norm is not None), None)

    def redone(self, output: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return what becomes of another output of the weight."""
        for step in self.steps:
            output = step.redo(output)
        return output

    def undone(self, tip: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return a tensor of the tip's layout in the layout of the weight's output."""
        for step in reversed(self.steps):
            tip = step.undo(tip)
        return tip

    def scale(self, tip: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return what the way multiplies each position of the weight's output by.

        Args:
            tip: The tensor at the end of the trail.
        """
        total = torch.ones((), dtype=tip.dtype, device=tip.device)
        scaled = False
        for step in reversed(self.steps):
            if step.scale is not None:
                total = (total * step.scale) if scaled else step.scale.expand(tip.shape)
                scaled = True
            tip = step.undo(tip)
            total = step.undo(total) if scaled else total
        return total.expand(tip.shape)


class Follower(TorchDispatchMode):
    """Follows the outputs of the known weights; subclasses say what they do with them.

    Each hook may change what the network computes from there on.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        """Index the parameters and the BatchNorm layers of ``model``."""
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.weights = Weights(model, paths)
        self.norms = {
            module.running_mean.untyped_storage().data_ptr(): path
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        self._parameters = {
            parameter.untyped_storage().data_ptr() for parameter in named_parameters(model).values()
        }
        self._trails: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def trail_of(self, tensor: object) -> Trail | None:
        """Return the trail that ends in ``tensor``."""
        return self._trails.get(tensor) if isinstance(tensor, Tensor) else None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = base_name(func)
        run = Operator(name, func, args, kwargs)
        read = self.weights.read(name, args)
        if read is not None:
            output = self.on_read(read, run)
            self._trails[output] = Trail(read.path)
            return output
        norm = self.norm_of(run)
        if norm is not None:
            self.on_norm(norm, run)
        trails = [self.trail_of(arg) for arg in args[:2]]
        if name == "add" and any(trails) and run.adds_streams():
            self.on_sum(run, trails)
        elif any(trails):
            self.on_use([trail for trail in trails if trail is not None], run)
        output = run()
        self._go_on(run, norm, output)
        return output

    def _go_on(self, run: Operator, norm: str | None, output: Any) -> None:
        """Note the trail of an operator's output; what it wrote to has lost its own."""
        trail = self.trail_of(run.args[0]) if run.args else None
        result = output[0] if isinstance(output, tuple) else output
        if not isinstance(result, Tensor):
            return
        step = None if trail is None else self._step(run, norm, result)
        if trail is None or step is None:
            self._trails.pop(result, None)
        else:
            self._trails[result] = dataclasses.replace(trail, steps=(*trail.steps, step))

    def _step(self, run: Operator, norm: str | None, output: Tensor) -> Step | None:
        """Return an operator as a step, ``None`` where it is none of a trail."""
        inputs, rest = run.args[0], run.args[1:]

        def redo(other: Tensor) -> Tensor:
            again = run.func(other, *rest, **run.kwargs)
            result: Tensor = again[0] if isinstance(again, tuple) else again
            return result

        if norm is not None:
            scale = _norm_scale(run.args).reshape(-1, *[1] * (output.ndim - 2))
            return Step(redo, _same, scale, norm)
        if run.name in ("mul", "add") and self._constant(rest[0], output):
            return Step(redo, _same, rest[0] if run.name == "mul" else None)
        undo = _undo(run.name, inputs, rest)
        return None if undo is None else Step(redo, undo)

    def _constant(self, operand: object, output: Tensor) -> bool:
        """Return whether an operand is a parameter, the same for every sample."""
        return (
            isinstance(operand, Tensor)
            and operand.untyped_storage().data_ptr() in self._parameters
            and operand.numel() < output.numel()
        )

    def norm_of(self, run: Operator) -> str | None:
        """Return the path of the BatchNorm that an operator runs, ``None`` for another."""
        if "batch_norm" not in run.name or not isinstance(run.args[3], Tensor):
            return None
        return self.norms.get(run.args[3].untyped_storage().data_ptr())

    def on_read(self, read: Read, run: Operator) -> Tensor:
        """Return the output of a known weight."""
        output: Tensor = run()
        return output

    def on_norm(self, path: str, run: Operator) -> None:
        """Hear of a BatchNorm that is about to run."""

    def on_sum(self, run: Operator, trails: list[Trail | None]) -> None:
        """Hear of an addition that is about to run, of two streams one of which has a trail."""

    def on_use(self, trails: list[Trail], run: Operator) -> None:
        """Hear of any other operator that is about to run on tensors with trails."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """A call that is about to run."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """Run it and return what it returns."""
        return self.func(*self.args, **self.kwargs)

    def adds_streams(self) -> bool:
        """Return whether it adds two tensors of the same shape, as they are."""
        left, right = self.args[0], self.args[1]
        return (
            isinstance(left, Tensor)
            and isinstance(right, Tensor)
            and left.shape == right.shape
            and self.kwargs.get("alpha", 1) == 1
        )


@dataclasses.dataclass(frozen=True)
class Ending:
    """How the trail of a weight's output ends.

    Attributes:
        norm: Path of the BatchNorm on the way, if there is one.
        added: Whether it ends in an addition, and nothing else reads what is added.
    """

    norm: str | None
    added: bool


class EndingsOf(Follower):
    """Notes how the trail of every known weight ends."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        """Start with no trail seen."""
        super().__init__(model, paths)
        self._norms: dict[str, str] = {}
        self._runs: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._used_before_norm: Counter[str] = Counter()
        self._added: set[str] = set()

    @property
    def endings(self) -> dict[str, Ending]:
        """The endings of the weights that ran once, in the order in which they ran."""
        return {
            path: Ending(
                None if self._used_before_norm[path] else self._norms.get(path),
                path in self._added and self._used[path] == 0,
            )
            for path, runs in self._runs.items()
            if runs == 1
        }

    def on_read(self, read: Read, run: Operator) -> Tensor:
        """Count the run; the output of one weight may be what another reads."""
        self._runs[read.path] += 1
        trails = [self.trail_of(arg) for arg in run.args[:3]]
        self._use([trail for trail in trails if trail is not None])
        return super().on_read(read, run)

    def on_sum(self, run: Operator, trails: list[Trail | None]) -> None:
        """Note an ending: of the first weight to run whose output nobody else has read so far.

        What is added twice is read by others.
        """
        order = list(self._runs)
        found = sorted((t for t in trails if t is not None), key=lambda t: order.index(t.path))
        free = [t for t in found if self._used[t.path] == 0 and t.path not in self._added]
        self._added.update(trail.path for trail in free[:1])
        self._use([trail for trail in found if trail not in free[:1]])

    def on_use(self, trails: list[Trail], run: Operator) -> None:
        """Note the BatchNorm, and whether somebody else reads what comes later to an addition."""
        norm = self.norm_of(run)
        if norm is not None:
            for trail in trails:
                self._norms.setdefault(trail.path, norm)
        elif _undo(run.name, run.args[0], run.args[1:]) is None and not self._affine(run):
            self._use(trails)

    def _use(self, trails: list[Trail]) -> None:
        for trail in trails:
            self._used[trail.path] += 1
            self._used_before_norm[trail.path] += trail.norm is None

    def _affine(self, run: Operator) -> bool:
        return run.name in ("mul", "add") and self._constant(run.args[1], run.args[0])


def _norm_scale(args: Sequence[Any]) -> Float[Tensor, " channels"]:
    """Return what a BatchNorm in eval mode multiplies by, from the operator's arguments."""
    weight, variance, eps = args[1], args[4], args[-1]
    scale: Tensor = (variance + eps).rsqrt()
    return scale if weight is None else scale * weight


def _same(tensor: Tensor) -> Tensor:
    return tensor


#: Operators that keep the order of the elements and change at most the shape.
_RESHAPES = frozenset(
    {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten"}
)

#: Operators that give back what they got.
_COPIES = frozenset({"clone", "alias", "detach", "contiguous", "dropout", "lift_fresh"})


def _undo(name: str, inputs: Any, rest: Sequence[Any]) -> _Undo | None:
    """Return how to undo an operator that only moves elements, ``None`` for any other.

    Args:
        name: Its name.
        inputs: Its first argument.
        rest: Its other arguments.
    """
    if name in _COPIES:
        return _same
    if name in _RESHAPES:
        shape = inputs.shape
        return lambda tensor: tensor.reshape(shape)
    if name == "t":
        return lambda tensor: tensor.t()
    if name == "transpose":
        return lambda tensor: tensor.transpose(rest[0], rest[1])
    if name == "permute":
        order = [dim % inputs.ndim for dim in rest[0]]
        return lambda tensor: tensor.permute([order.index(dim) for dim in range(len(order))])
    if name == "roll":
        dims = rest[1] if len(rest) > 1 else []
        return lambda tensor: tensor.roll([-shift for shift in rest[0]], dims)
    return None
