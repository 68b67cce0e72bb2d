"""Runs a model once and works out what can be removed from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from autoprune.errors import TraceError
from autoprune.network.call import RULES, Call, base_name, is_pointwise, makes_filled, tensors_in
from autoprune.network.groups import Block, ChannelGroup, ParamSlice
from autoprune.network.inputs import Inputs, batch_size, call_model, evaluating, normalised, shapes
from autoprune.network.labels import AtomSpace, Coupling, Planes
from autoprune.network.network import Network
from autoprune.network.ops import Affine, OpTable, ParameterSize
from autoprune.network.record import Record, Width, kind_of, record


def trace(model: nn.Module, inputs: Tensor | Inputs) -> Network:
    """Return what can be removed from ``model`` and what it costs, from one forward pass.

    The pass runs in eval mode without gradients on clones of the inputs; the model is left as it
    was. Groups are not verified yet: see :func:`autoprune.pruning.verify.verified`.

    Args:
        model: Any module.
        inputs: Example inputs: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments, nested as the model wants them. The first dimension of the first tensor is
            the batch that latency is predicted for.

    Raises:
        TraceError: The model does not run on ``inputs``.
    """
    atoms = AtomSpace(model)
    inputs = normalised(inputs)
    tracer = _Tracer(atoms, batch_size(inputs))
    with evaluating(model), tracer.watching(model), torch.no_grad():
        try:
            with tracer:
                output = call_model(model, inputs)
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} does not run on inputs of shapes {shapes(inputs)}: "
                f"{tracer.where}{type(error).__name__}: {error}. Pass example inputs that its "
                "forward accepts, on the device of its weights."
            ) from error
    for tensor in tensors_in(output):
        for plane in tracer.planes_of(tensor):
            tracer.coupling.freeze(plane, "network output")
    return _assemble(model, inputs, tracer)


@dataclasses.dataclass
class _Frame:
    """A module that is running."""

    path: str
    inputs: tuple[int, ...]
    planes: Planes
    shape: tuple[int, ...]
    first_op: int
    residual: bool = False


@dataclasses.dataclass(frozen=True)
class _Residual:
    """A module whose output has its input added to it."""

    path: str
    entering: Planes
    leaving: Planes


class _Tracer(TorchDispatchMode):
    """Applies the rules to every operator that runs and notes what it costs."""

    def __init__(self, atoms: AtomSpace, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.atoms = atoms
        self.batch = batch
        self.coupling = Coupling(atoms.size)
        self.records: list[Record] = []
        self.residuals: list[_Residual] = []
        self.calls: Counter[str] = Counter()
        self.unsupported: Counter[str] = Counter()
        self._planes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._producer: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._filled: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._frames: list[_Frame] = []

    def planes_of(self, tensor: Tensor) -> Planes:
        """Return the planes of a tensor of this pass."""
        known = self.atoms.planes(tensor)
        if known is None:
            known = self._planes.get(tensor, ())
        return tuple(plane for plane in known if plane.numel() > 1)

    def is_filled(self, tensor: Tensor) -> bool:
        """Return whether a tensor was made of one number."""
        return tensor in self._filled

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        call = Call(
            base_name(func), func, args, kwargs, out, self.coupling, self.planes_of, self.is_filled
        )
        if call.outputs:
            self._note(call)
        return out

    def _note(self, call: Call) -> None:
        planes = self._pass_labels(call)
        kind = kind_of(call)
        producers = tuple(sorted({self._producer[t] for t in call.tensors if t in self._producer}))
        if kind is not None and (producers or kind in ("conv", "linear", "matmul")):
            path = self._frames[-1].path if self._frames else ""
            self.records.append(
                record(
                    call,
                    kind,
                    path=path,
                    inputs=producers,
                    out_planes=planes[0] if planes else (),
                    batch=self.batch,
                )
            )
            producers = (len(self.records) - 1,)
        if call.name == "add":
            self._note_residual(call)
        filled = makes_filled(call)
        for tensor, own in zip(call.outputs, planes, strict=True):
            if filled:
                self._filled[tensor] = True
            if self.atoms.planes(tensor) is None:
                self._planes[tensor] = own
            if producers:
                self._producer[tensor] = producers[-1]

    def _pass_labels(self, call: Call) -> list[Planes]:
        """Return the planes of every output."""
        labelled = [tensor for tensor in call.tensors if self.planes_of(tensor)]
        none: list[Planes] = [()] * len(call.outputs)
        if not labelled:
            return none
        name = call.name
        if name not in RULES.names():
            if not is_pointwise(call.func):
                self.unsupported[f"aten.{name}"] += 1
                call.freeze(labelled, f"operator aten.{name} has no rule")
                return none
            name = "pointwise"
        try:
            result = RULES[name](call)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            self.unsupported[f"aten.{call.name}"] += 1
            call.freeze(labelled, f"the rule of aten.{call.name} does not cover this use: {error}")
            return none
        if isinstance(result, list):
            return result
        return [cast("Planes", result), *none[1:]]

    def _note_residual(self, call: Call) -> None:
        operands = {id(tensor) for tensor in call.tensors}
        if len(operands) > 1:
            for frame in self._frames:
                frame.residual |= bool(operands & set(frame.inputs))

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Note which module runs, by hooks that are removed afterwards."""
        handles = []
        for path, module in model.named_modules():
            enter = self._enter(path)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def where(self) -> str:
        """The module that was running, for an error message."""
        path = self._frames[-1].path if self._frames else ""
        return f"in module {path!r}: " if path else ""

    def _enter(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = list(tensors_in((args, kwargs)))
            planes = self.planes_of(tensors[0]) if tensors else ()
            shape = tuple(tensors[0].shape) if tensors else ()
            ids = tuple(id(tensor) for tensor in tensors[:1])
            self.calls[path] += 1
            self._frames.append(_Frame(path, ids, planes, shape, len(self.records)))

        return enter

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        frame = self._frames.pop()
        computes = any(
            entry.kind in ("conv", "linear", "matmul") for entry in self.records[frame.first_op :]
        )
        if not (frame.residual and frame.path and computes and isinstance(output, Tensor)):
            return
        if frame.planes and tuple(output.shape) == frame.shape:
            self.residuals.append(_Residual(frame.path, frame.planes, self.planes_of(output)))


def _assemble(model: nn.Module, inputs: Inputs, tracer: _Tracer) -> Network:
    """Return the network from what the pass noted."""
    component, claimed, reasons = tracer.coupling.solve()
    units = _Units(tracer, component, claimed)
    groups, frozen = units.groups(reasons)
    unit_group = units.group_of_component(groups)
    blocks = _blocks(tracer, component, groups)
    owner = _owners([block.name for block in blocks])

    def affine(width: Width) -> Affine:
        return _affine(width, component, unit_group, groups)

    ops = tuple(entry.resolve(affine, owner(entry.path)) for entry in tracer.records)
    parameters = tuple(
        ParameterSize(name, units.dims(tensor, affine), owner(name.rpartition(".")[0]))
        for name, tensor in model.named_parameters()
    )
    ran = {path for path, count in tracer.calls.items() if count}
    unused = tuple(
        path
        for path, module in model.named_modules()
        if path not in ran and next(module.parameters(recurse=False), None) is not None
    )
    table = OpTable(ops, parameters, tuple(group.size for group in groups), len(blocks))
    return Network(model, inputs, groups, blocks, table, frozen, tracer.unsupported, unused)


class _Units:
    """Sorts the components of the coupling into groups of units with equal signature."""

    def __init__(
        self,
        tracer: _Tracer,
        component: Int[np.ndarray, " atoms"],
        claimed: Bool[np.ndarray, " atoms"],
    ) -> None:
        self._tracer = tracer
        self._component = component
        self._atoms = np.flatnonzero(claimed)
        order = np.argsort(component[self._atoms], kind="stable")
        self._atoms = self._atoms[order]
        self._numbers, starts = np.unique(component[self._atoms], return_index=True)
        self._members = np.split(self._atoms, starts[1:])

    def groups(self, reasons: dict[int, str]) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
        """Return the groups that can be cut and, by name, why the others cannot."""
        atoms = self._tracer.atoms
        by_signature: dict[tuple[str, bytes], list[int]] = {}
        for index, members in enumerate(self._members):
            ranges, _ = atoms.locate(members)
            reason = reasons.get(int(self._numbers[index]), "")
            by_signature.setdefault((reason, ranges.tobytes()), []).append(index)
        groups: list[ChannelGroup] = []
        frozen: dict[str, str] = {}
        names: Counter[str] = Counter()
        for (reason, _), indices in sorted(by_signature.items(), key=lambda item: item[1][0]):
            slices = self._slices(indices)
            if not any(member.path in atoms.parameters for member in slices):
                continue
            stem = _stem(slices)
            names[stem] += 1
            name = stem if names[stem] == 1 else f"{stem}#{names[stem]}"
            if not reason and len(indices) == 1:
                reason = "a single unit"
            if reason:
                frozen[name] = reason
                continue
            mixed = bool(self._tracer.coupling.mixed[self._members[indices[0]]].any())
            groups.append(ChannelGroup(name, len(indices), slices, "channel", mixed))
        return tuple(groups), frozen

    def _slices(self, indices: Sequence[int]) -> tuple[ParamSlice, ...]:
        atoms = self._tracer.atoms
        ranges, _ = atoms.locate(self._members[indices[0]])
        positions = np.stack([atoms.locate(self._members[i])[1] for i in indices])
        return tuple(
            ParamSlice(path, dim, positions[:, ranges == number])
            for number in np.unique(ranges)
            for path, dim in [atoms.ranges[number]]
        )

    def group_of_component(self, groups: Sequence[ChannelGroup]) -> Int[np.ndarray, " components"]:
        """Return the group index of every component, -1 for none."""
        result = np.full(int(self._component.max(initial=0)) + 1, -1, np.int64)
        atoms = self._tracer.atoms
        start_of = dict(zip(atoms.ranges, atoms.starts, strict=True))
        for index, group in enumerate(groups):
            member = group.members[0]
            first = start_of[member.path, member.dim] + member.indices[:, 0]
            result[self._component[first]] = index
        return result

    def dims(self, tensor: Tensor, affine: Callable[[Width], Affine]) -> tuple[Affine, ...]:
        """Return the affine dimensions of a parameter."""
        planes = self._tracer.atoms.planes(tensor)
        if planes is None:
            return tuple(Affine(size) for size in tensor.shape)
        return tuple(
            affine(Width(size, plane.reshape(-1)))
            for size, plane in zip(tensor.shape, planes, strict=True)
        )


def _stem(slices: Sequence[ParamSlice]) -> str:
    """Return the module path of the first weight whose output dimension a group cuts."""
    producers = [s for s in slices if s.dim == 0 and s.path.endswith("weight")]
    first = (producers or list(slices))[0]
    path = first.path.rpartition(".")[0] or first.path
    return path if producers else f"{path}.input"


def _affine(
    width: Width,
    component: Int[np.ndarray, " atoms"],
    unit_group: Int[np.ndarray, " components"],
    groups: Sequence[ChannelGroup],
) -> Affine:
    """Return how a labelled width follows the groups; unlabelled positions are constant."""
    if width.labels is None:
        return Affine(width.size)
    labels = width.labels.numpy()
    number = np.where(labels > 0, unit_group[component[labels]], -1)
    found, counts = np.unique(number[number >= 0], return_counts=True)
    terms = tuple(
        (int(group), int(count) // groups[int(group)].size)
        for group, count in zip(found, counts, strict=True)
    )
    variable = sum(multiplicity * groups[group].size for group, multiplicity in terms)
    return Affine(width.size - variable, terms)


def _blocks(
    tracer: _Tracer, component: Int[np.ndarray, " atoms"], groups: Sequence[ChannelGroup]
) -> tuple[Block, ...]:
    """Return the innermost residual modules whose output channels are their input channels."""
    paths = [
        entry.path
        for entry in tracer.residuals
        if tracer.calls[entry.path] == 1 and _same_units(entry, component)
    ]
    inner = [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]
    return tuple(
        Block(
            path,
            tuple(
                group.name
                for group in groups
                if all(member.path.startswith(f"{path}.") for member in group.members)
            ),
        )
        for path in inner
    )


def _same_units(entry: _Residual, component: Int[np.ndarray, " atoms"]) -> bool:
    if len(entry.entering) != len(entry.leaving):
        return False
    return all(
        before.shape == after.shape
        and bool((component[before.numpy()] == component[after.numpy()]).all())
        for before, after in zip(entry.entering, entry.leaving, strict=True)
    )


def _owners(blocks: Sequence[str]) -> Callable[[str], int]:
    """Return a function from module path to the index of the block around it, -1 for none."""
    index = {path: number for number, path in enumerate(blocks)}

    def owner(path: str) -> int:
        while path:
            if path in index:
                return index[path]
            path = path.rpartition(".")[0]
        return -1

    return owner
