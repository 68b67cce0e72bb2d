"""Runs a model once and works out what can be removed from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from autoprune.errors import TraceError
from autoprune.network.call import RULES, Call, base_name, is_pointwise, makes_filled, tensors_in
from autoprune.network.failure import failed, without_tensors, without_weights
from autoprune.network.groups import Block, ChannelGroup, ParamSlice
from autoprune.network.inputs import Inputs, batch_size, call_model, evaluating, normalised
from autoprune.network.labels import AtomSpace, Coupling, Planes, varying
from autoprune.network.network import Network
from autoprune.network.ops import Affine, OpTable, ParameterSize
from autoprune.network.record import Record, Width, kind_of, record
from autoprune.network.reshapes import Followed, Note, Reshape, ReshapeWatch, Spread
from autoprune.network.rules.experts import COUNTS, numbered
from autoprune.network.writes import after_write


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
        TraceError: The model does not run on ``inputs``, uses no parameter, or returns no tensor.
    """
    inputs = normalised(inputs)
    atoms = AtomSpace(model)
    tracer = _Tracer(atoms, batch_size(inputs))
    with evaluating(model), tracer.watching(model), torch.no_grad():
        try:
            with tracer, ReshapeWatch(tracer.planes_of, tracer.note_reshape):
                output = call_model(model, inputs)
        except Exception as error:
            raise TraceError(failed(model, inputs, error, tracer.where)) from error
    outputs = list(tensors_in(output))
    if not outputs:
        raise TraceError(without_tensors(model, output))
    if not tracer.uses_weights:
        raise TraceError(without_weights(model, inputs))
    for tensor in outputs:
        numbers = tracer.numbers_of(tensor)
        for plane in (*tracer.planes_of(tensor), *(() if numbers is None else (numbers,))):
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
    reshapes: list[Note] = dataclasses.field(default_factory=list)


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
        self.reshapes: dict[str, list[list[Note]]] = {}
        self.unsupported: Counter[str] = Counter()
        self.uses_weights = False
        self._planes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._producer: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._filled: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._numbers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
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

    def numbers_of(self, tensor: Tensor) -> Tensor | None:
        """Return the plane whose positions a tensor's values number."""
        plane: Tensor | None = self._numbers.get(tensor)
        return plane

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
            base_name(func),
            func,
            args,
            kwargs,
            out,
            self.coupling,
            self.planes_of,
            self.is_filled,
            self.numbers_of,
        )
        self.uses_weights |= any(isinstance(tensor, nn.Parameter) for tensor in call.tensors)
        if call.outputs:
            self._note(call)
        return out

    def note_reshape(self, note: Note) -> None:
        """Note a reshaping call of the module that is running."""
        if self._frames:
            self._frames[-1].reshapes.append(note)

    def _note(self, call: Call) -> None:
        written = call.args[:1] if call.func._schema.is_mutable else ()
        views = [t for t in written if isinstance(t, Tensor) and t._base is not None]
        unlabelled = [view for view in views if not self.planes_of(view)]
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
        for tensor, plane in numbered(call):
            self._numbers[tensor] = plane
        for tensor, own in zip(call.outputs, planes, strict=True):
            if filled:
                self._filled[tensor] = True
            else:
                self._filled.pop(tensor, None)
            if self.atoms.planes(tensor) is None:
                self._planes[tensor] = own
            if producers:
                self._producer[tensor] = producers[-1]
        for view in unlabelled:
            self._write_through(view, planes[0], filled=filled)
        if is_pointwise(call.func) and planes[0]:
            self._lend(call, planes[0])

    def _lend(self, call: Call, planes: Planes) -> None:
        """Give tensors made of one number the labels they met: they are as wide wherever they go.

        A position bias of zeros that all layers share keeps their heads equally many.
        """
        out = call.outputs[0]
        for tensor in call.tensors:
            if self.is_filled(tensor) and not self.planes_of(tensor):
                lead = out.ndim - tensor.ndim
                shape = (1,) * lead + tuple(tensor.shape)
                self._planes[tensor] = tuple(
                    plane.reshape(plane.shape[lead:])
                    for plane in planes
                    if all(shape[dim] == out.shape[dim] for dim in varying(plane))
                )

    def _write_through(self, view: Tensor, planes: Planes, *, filled: bool) -> None:
        """Give the labels that were written into a view to the tensor that it is a part of."""
        base = view._base
        if base is None or self.atoms.planes(base) is not None:
            return
        if not filled:
            self._filled.pop(base, None)
        whole = after_write(base, self.planes_of(base), view, planes) if planes else ()
        if whole is None:
            for plane in planes:
                self.coupling.freeze(plane, "written into a part of another tensor")
        elif whole:
            self._planes[base] = whole

    def _pass_labels(self, call: Call) -> list[Planes]:
        """Return the planes of every output."""
        labelled = [tensor for tensor in call.tensors if self.planes_of(tensor)]
        none: list[Planes] = [()] * len(call.outputs)
        counts = call.name in COUNTS and self.numbers_of(call.args[0]) is not None
        if not (labelled or counts):
            return none
        name = call.name
        if name not in RULES.names():
            if not is_pointwise(call.func):
                self.unsupported[call.full_name] += 1
                call.freeze(labelled, f"operator {call.full_name} has no rule")
                return none
            name = "pointwise"
        try:
            result = RULES[name](call)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            self.unsupported[call.full_name] += 1
            reason = f"the rule of {call.full_name} does not cover this use: {error}"
            call.freeze(labelled, reason)
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
        """The path of the module that was running, ``""`` for none."""
        return self._frames[-1].path if self._frames else ""

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
        if frame.reshapes:
            self.reshapes.setdefault(frame.path, []).append(frame.reshapes)
        computes = any(
            entry.kind in ("conv", "linear", "matmul") for entry in self.records[frame.first_op :]
        )
        if not (frame.residual and frame.path and computes and isinstance(output, Tensor)):
            return
        if frame.planes and tuple(output.shape) == frame.shape:
            self.residuals.append(_Residual(frame.path, frame.planes, self.planes_of(output)))


def _assemble(model: nn.Module, inputs: Inputs, tracer: _Tracer) -> Network:
    """Return the network from what the pass noted."""
    if tracer.coupling.idle:
        _freeze_lists_with_idle_modules(model, tracer)
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
    names, sizes = [group.name for group in groups], table.group_sizes

    def follow(spread: Spread) -> Followed | None:
        return spread.follow(component, unit_group, names, sizes)

    reshapes = _reshapes(tracer.reshapes, follow)
    return Network(
        model, inputs, groups, blocks, table, frozen, tracer.unsupported, unused, reshapes
    )


def _freeze_lists_with_idle_modules(model: nn.Module, tracer: _Tracer) -> None:
    """Freeze lists of modules some of which no token reached: a cut would pass those by."""
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            continue
        if all(tracer.calls[f"{path}.{name}" if path else name] for name in module._modules):
            continue
        for tensor in module.parameters():
            for plane in tracer.planes_of(tensor):
                tracer.coupling.freeze(plane, "no token reached some of the experts; pass more")


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
            unit = self._members[indices[0]]
            least, multiple = self._grid(unit)
            if not reason and len(indices) <= least:
                reason = "a single unit" if len(indices) == 1 else "all units are needed"
            if reason:
                frozen[name] = reason
                continue
            mixed = bool(self._tracer.coupling.mixed[unit].any())
            kind = self._kind(unit, slices)
            groups.append(
                ChannelGroup(
                    name, len(indices), slices, kind, mixed, least=least, multiple=multiple
                )
            )
        return tuple(groups), frozen

    def _grid(self, atoms: Int[np.ndarray, " atoms"]) -> tuple[int, int]:
        """Return the fewest units that must stay and what their number is a multiple of."""
        coupling = self._tracer.coupling
        multiple = int(np.lcm.reduce(coupling.multiple[atoms]))
        return max(int(coupling.picked[atoms].max()), multiple), multiple

    def _kind(self, atoms: Int[np.ndarray, " atoms"], slices: Sequence[ParamSlice]) -> str:
        """Return what units are: experts that a router picks, attention heads, or channels."""
        if self._tracer.coupling.picked[atoms].any():
            return "expert"
        rows = any(member.per_unit > 1 and member.contiguous for member in slices)
        return "head" if rows and self._tracer.coupling.batched[atoms].any() else "channel"

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
    """Return the module path of the first weight whose output dimension a group cuts.

    Groups of input dimensions alone have ``.input`` behind; tensors that are no layer's weight
    (a class token, experts stacked in one tensor) give their own name.
    """
    producers = [s for s in slices if s.dim == 0 and s.path.endswith("weight")]
    first = (producers or list(slices))[0]
    path, _, name = first.path.rpartition(".")
    if producers and path:
        return path
    return f"{path}.input" if path and name in ("weight", "bias") else first.path


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


def _reshapes(
    notes: Mapping[str, list[list[Note]]], follow: Callable[[Spread], Followed | None]
) -> dict[str, tuple[Reshape, ...]]:
    """Return the reshaping calls of each module that makes the same ones whenever it runs."""
    reshapes = {}
    for path, passes in notes.items():
        known = {tuple(note.resolve(follow) for note in calls) for calls in passes}
        if len(known) == 1:
            reshapes[path] = known.pop()
    return reshapes


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
