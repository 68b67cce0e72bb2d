"""Operators to the kernels a runtime launches for them, with their work as affine functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from autoprune.errors import UnknownNameError
from autoprune.latency.layers import is_batch_norm, is_view, ops_from_rows, plain_name
from autoprune.network.ops import Affine, Op, OpTable

#: Kernel families; a roofline has one set of parameters for each. ``copy`` only moves data.
FAMILIES = ("conv", "dwconv", "gconv", "linear", "matmul", "pool", "pointwise", "copy")

_COMPUTE = ("conv", "linear", "matmul")
_ADDS = frozenset({"add", "eltwise"})
_RELUS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
#: What a product of two activations does on the side: reorder, scale, shift, mask, normalise.
_AROUND_MATMUL = frozenset(
    {"clone", "copy", "contiguous", "mul", "div", "add", "sub", "masked_fill", "where", "softmax"}
)
_ONE = Affine(1)


@dataclasses.dataclass(frozen=True)
class Window:
    """What a kernel slides over, beyond its channels.

    Attributes:
        taps: Kernel positions per output.
        stride: Stride height times stride width.
        inputs: Input positions per image.
        outputs: Output positions per image.
        batch: Images.
    """

    taps: int = 1
    stride: int = 1
    inputs: int = 1
    outputs: int = 1
    batch: int = 1


#: What a kernel costs, without its name.
Cost: TypeAlias = tuple[str, Affine, Affine, Affine, float, float, float, float, Window]


@dataclasses.dataclass(frozen=True)
class FusionRules:
    """What one runtime merges into one kernel, and what it copies.

    Attributes:
        absorbs: Activations that a convolution or linear computes before it writes its output.
        folds_norms: A batch norm behind a convolution disappears into its weights.
        absorbs_add: A convolution adds a second tensor (a residual) before it writes its output.
        merges_pointwise: Pointwise operators of one shape in a row become one kernel.
        joins: What a concatenation costs: ``"free"``, producers write their part directly;
            ``"shared"``, that too, but a part which others read as well is copied; ``"copy"``, all
            of it is copied.
        copies_slices: A part of a tensor's channels is copied before an operator reads it.
        fuses_attention: Reordering, scaling and the softmax around products of two activations
            belong to the products.
        winograd: Multiply-accumulates of a 3x3 convolution that steps by one are divided by this.
    """

    absorbs: frozenset[str] = frozenset()
    folds_norms: bool = True
    absorbs_add: bool = True
    merges_pointwise: bool = True
    joins: Literal["free", "shared", "copy"] = "free"
    copies_slices: bool = True
    fuses_attention: bool = True
    winograd: float = 1.0


#: Fusion rules by runtime. TensorRT's are those that predict held-out whole networks on six Jetson
#: boards best: sigmoid-like activations and slices stay kernels of their own, concatenations cost
#: nothing. Only the oldest table, of a Jetson AGX Xavier in 2019, shows DenseNets whose shared
#: features are copied into every concatenation: ``tensorrt_early``.
RUNTIMES = {
    "tensorrt": FusionRules(absorbs=_RELUS),
    "tensorrt_early": FusionRules(absorbs=_RELUS, joins="shared"),
    "onnxruntime": FusionRules(
        absorbs=_RELUS | {"sigmoid", "tanh", "leaky_relu"},
        merges_pointwise=False,
        joins="copy",
        fuses_attention=False,
    ),
    "openvino": FusionRules(
        absorbs=_RELUS | {"sigmoid", "tanh", "hardswish", "silu", "gelu"}, joins="shared"
    ),
    "eager": FusionRules(
        folds_norms=False,
        absorbs_add=False,
        merges_pointwise=False,
        joins="copy",
        copies_slices=False,
        fuses_attention=False,
    ),
    # torch.compile: as ONNX Runtime on the CPUs of timm's table; it merges elementwise chains.
    "compile": FusionRules(
        absorbs=_RELUS | {"sigmoid", "tanh", "leaky_relu"},
        joins="copy",
        fuses_attention=False,
    ),
    "tflite": FusionRules(
        absorbs=_RELUS,
        absorbs_add=False,
        merges_pointwise=False,
        joins="copy",
        fuses_attention=False,
    ),
    # 2.25 is what F(2x2, 3x3) saves; it predicts held-out networks best on six boards and phones.
    "ncnn": FusionRules(
        absorbs=_RELUS | {"sigmoid", "hardswish", "leaky_relu", "swish"},
        absorbs_add=False,
        merges_pointwise=False,
        joins="copy",
        fuses_attention=False,
        winograd=2.25,
    ),
}


def fusion_rules(runtime: str) -> FusionRules:
    """Return the rules of ``runtime``.

    Raises:
        UnknownNameError: No rules are known for it.
    """
    try:
        return RUNTIMES[runtime]
    except KeyError:
        raise UnknownNameError("runtime", runtime, RUNTIMES) from None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch and its work for the whole batch.

    With ``product = cin * cout / groups`` it computes ``macs * product`` multiply-accumulates and
    moves ``reads * cin + writes * cout + weights * product`` elements.

    Attributes:
        family: One of :data:`FAMILIES`.
        name: The operators it fuses, joined by ``+``.
        path: Module path of the first.
        block: Index of the removable block it belongs to, ``-1`` for none.
        cin: Input channels.
        cout: Output channels.
        groups: Independent groups of channels.
        macs: Multiply-accumulates per ``product``.
        weights: Weight (or second operand) elements per ``product``.
        reads: Elements read per input channel.
        writes: Elements written, and read from added tensors, per output channel.
        window: What it slides over.
    """

    family: str
    name: str
    path: str
    block: int
    cin: Affine
    cout: Affine
    groups: Affine = _ONE
    macs: float = 0.0
    weights: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    window: Window = Window()

    @property
    def cost(self) -> Cost:
        """Everything that decides the time, without names and block."""
        dims = (self.cin, self.cout, self.groups)
        factors = (self.macs, self.weights, self.reads, self.writes)
        return (self.family, *dims, *factors, self.window)


@dataclasses.dataclass(frozen=True)
class KernelTable:
    """Every kernel of a network under one runtime, in execution order.

    Attributes:
        kernels: The kernels.
        group_sizes: Full width (units) of each channel group; a width vector has this length.
        block_count: Length of a keep vector.
        batch: Images per forward pass.
    """

    kernels: tuple[Kernel, ...]
    group_sizes: tuple[int, ...] = ()
    block_count: int = 0
    batch: int = 1

    @property
    def signature(self) -> tuple[Cost, ...]:
        """The kernels' costs in canonical order, equal for networks that fuse to the same work."""
        return tuple(sorted((kernel.cost for kernel in self.kernels), key=repr))


def fuse(table: OpTable, runtime: str) -> KernelTable:
    """Return the kernels that ``runtime`` launches for a traced network.

    Args:
        table: The operators.
        runtime: A key of :data:`RUNTIMES`.

    Raises:
        UnknownNameError: No fusion rules are known for ``runtime``.
    """
    kernels = _Fusion(table, fusion_rules(runtime)).kernels()
    batch = max((op.batch for op in table.ops), default=1)
    return KernelTable(tuple(kernels), table.group_sizes, table.block_count, batch)


def from_layers(
    rows: Sequence[Sequence[object]], runtime: str, *, network: str = "", batch: int = 1
) -> KernelTable:
    """Return the kernels of a layer list (see :mod:`autoprune.latency.layers`).

    Args:
        rows: The layers.
        runtime: A key of :data:`RUNTIMES`.
        network: The network's name, for messages and paths.
        batch: Images per forward pass.

    Raises:
        ProfileError: Rows are malformed.
        UnknownNameError: No fusion rules are known for ``runtime``.
    """
    return fuse(ops_from_rows(rows, network=network, batch=batch), runtime)


class _Fusion:
    """One pass over the operators that assigns each to a kernel.

    A kernel is a chain of operator indices. Views belong to none and are looked through;
    concatenations become copies or nothing.
    """

    def __init__(self, table: OpTable, rules: FusionRules) -> None:
        self.ops, self.rules, self.sizes = table.ops, rules, table.group_sizes
        self.sources: list[tuple[int, ...]] = []  # per op: who wrote its inputs, views resolved
        self.beside = self._beside_matmuls() if rules.fuses_attention else frozenset()
        for op in self.ops:
            written = (self.sources[i] if self._is_alias(i) else (i,) for i in op.inputs)
            self.sources.append(tuple(dict.fromkeys(i for part in written for i in part)))
        self.readers: list[set[int]] = [set() for _ in self.ops]
        for index in range(len(self.ops)):
            for producer in () if self._is_alias(index) else self.sources[index]:
                self.readers[producer].add(index)
        self.chains: list[list[int]] = []
        self.home: dict[int, list[int]] = {}  # op -> its kernel's chain

    def kernels(self) -> list[Kernel]:
        """Return all kernels, each at the place of its first operator."""
        for index, op in enumerate(self.ops):
            if op.kind != "cat" and not self._is_alias(index):
                self._assign(index)
        built = [(chain[0], 1, self._kernel(chain)) for chain in self.chains]
        for index, op in enumerate(self.ops):
            if op.kind == "cat" and not self._is_alias(index):
                built.extend((index, 0, copy) for copy in self._join(index))
            elif self.rules.copies_slices:
                built.extend((index, 0, copy) for copy in self._slices(index))
        return [kernel for *_, kernel in sorted(built, key=lambda item: item[:2])]

    def _beside_matmuls(self) -> frozenset[int]:
        """Return the operators that only prepare a matmul's input or finish its output."""
        readers: list[set[int]] = [set() for _ in self.ops]
        for index, op in enumerate(self.ops):
            for producer in op.inputs:
                readers[producer].add(index)
        products = {index for index, op in enumerate(self.ops) if op.kind == "matmul"}
        side = [_can_be_beside(op) for op in self.ops]
        before: set[int] = set()
        for index in reversed(range(len(self.ops))):
            if side[index] and readers[index] and readers[index] <= products | before:
                before.add(index)
        after: set[int] = set()
        for index, op in enumerate(self.ops):
            if side[index] and set(op.inputs) <= products | after:
                after.add(index)
        return frozenset(before | after)

    def _is_alias(self, index: int) -> bool:
        """Return whether an operator hands on its only input at no cost of its own."""
        op = self.ops[index]
        alone = op.kind == "cat" and len(op.inputs) == 1 and op.cout == self.ops[op.inputs[0]].cout
        return alone or is_view(op) or index in self.beside

    def _assign(self, index: int) -> None:
        """Put an operator at the end of a kernel it fuses into (the latest), or in a new one."""
        hosts = [
            chain
            for producer in self.sources[index]
            if (chain := self.home.get(producer)) is not None
            and self.readers[producer] == {index}
            and chain[-1] == producer
            and self._accepts(chain, index)
        ]
        chain = max(hosts, default=None)
        if chain is None:
            chain = []
            self.chains.append(chain)
        chain.append(index)
        self.home[index] = chain

    def _accepts(self, chain: Sequence[int], index: int) -> bool:
        """Return whether the kernel of ``chain`` can also compute ``index``."""
        op, first, last = self.ops[index], self.ops[chain[0]], self.ops[chain[-1]]
        if op.out_size != last.out_size or op.cout != last.cout:
            return False
        if first.kind in _COMPUTE:
            done = max((self._stage(self.ops[i]) for i in chain[1:]), default=0)
            return self._stage(op) > done
        return self.rules.merges_pointwise and _is_pointwise(first) and _is_pointwise(op)

    def _stage(self, op: Op) -> int:
        """Return an operator's place in a compute kernel's tail (norm, add, activation), or 0."""
        name = plain_name(op.name)
        if is_batch_norm(op):
            return 1 if self.rules.folds_norms else 0
        if op.kind != "pointwise":
            return 0
        if name in _ADDS:
            return 2 if self.rules.absorbs_add else 0
        return 3 if name in self.rules.absorbs else 0

    def _kernel(self, chain: Sequence[int]) -> Kernel:
        first, last = self.ops[chain[0]], self.ops[chain[-1]]
        taps = math.prod(first.kernel) if first.kind in (*_COMPUTE, "pool") else 1
        # A strided 1x1 convolution skips most of its input.
        reads = float(first.batch * min(math.prod(first.in_size), _positions(first) * taps))
        if _is_pointwise(first):
            reads = max(reads, self._read_by(chain[0], ()))
        kernel = Kernel(
            family=_family(first),
            name="+".join(plain_name(self.ops[i].name) for i in chain),
            path=first.path,
            block=first.block,
            cin=first.cin,
            cout=last.cout,
            reads=reads,
            writes=float(last.batch * _positions(last))
            + sum(self._read_by(i, chain) for i in chain[1:]),
            window=_window(first, taps, _positions(last)),
        )
        if first.kind not in _COMPUTE:
            return kernel
        steps = math.prod(first.in_size) if first.transposed else _positions(first)
        return dataclasses.replace(
            kernel,
            groups=first.groups,
            macs=float(first.batch * taps * steps) / self._saving(first),
            # A matmul's second operand is an activation, one per image.
            weights=float(taps * (first.batch if first.kind == "matmul" else 1)),
        )

    def _saving(self, op: Op) -> float:
        """Return by how much fewer multiply-accumulates the runtime computes than the operator."""
        dense = op.kind == "conv" and op.groups == _ONE and not op.transposed
        fast = dense and op.kernel == (3, 3) and op.stride == (1, 1)
        return self.rules.winograd if fast else 1.0

    def _read_by(self, index: int, chain: Sequence[int]) -> float:
        """Return the elements per channel that ``index`` reads from tensors made outside a chain.

        A tensor of one channel, broadcast over all, is small and not counted.
        """
        op = self.ops[index]
        outside = (self.ops[i] for i in self.sources[index] if i not in chain)
        return float(
            sum(
                op.batch * min(math.prod(op.in_size), _positions(source))
                for source in outside
                if source.cout != _ONE
            )
        )

    def _join(self, index: int) -> Iterator[Kernel]:
        """Yield the copies a concatenation costs: of what is not written in place, or of all."""
        op = self.ops[index]
        if self.rules.joins == "free":
            return
        if self.rules.joins == "copy":
            yield _copy(op, op.cout)
            return
        copied: list[Affine] = []
        rest = op.cout
        for source in self.sources[index]:
            own = self.readers[source] == {index}
            if own and (source in self.home or self.ops[source].kind == "cat"):
                rest = _minus(rest, self.ops[source].cout)
            else:
                copied.append(self.ops[source].cout)
        remaining = rest.at(self.sizes)
        if remaining <= 0:  # joined along another dimension than channels
            yield from (_copy(op, op.cout) for _ in copied[:1])
        elif sum(part.at(self.sizes) for part in copied) == remaining:
            yield from (_copy(op, part) for part in copied)
        else:  # slices, or the network's input
            yield _copy(op, rest)

    def _slices(self, index: int) -> Iterator[Kernel]:
        """Yield the copies of channel slices that ``index`` reads."""
        op = self.ops[index]
        if op.kind not in ("conv", "pool", "pointwise") or len(self.sources[index]) != 1:
            return
        source = self.ops[self.sources[index][0]]
        # The output of a linear is a matrix whose columns can be read in place.
        part = source.cout.at(self.sizes) > op.cin.at(self.sizes) and source.kind != "linear"
        if part and source.out_size == op.in_size:
            yield dataclasses.replace(_copy(op, op.cin), name="slice")


def _can_be_beside(op: Op) -> bool:
    name = plain_name(op.name)
    return len(op.inputs) == 1 and (
        is_view(op) or name in _AROUND_MATMUL or name.endswith("softmax")
    )


def _family(op: Op) -> str:
    """Return the kernel family an operator starts."""
    if op.kind == "conv" and op.groups != _ONE:
        return "dwconv" if op.groups == op.cin else "gconv"
    if op.kind in ("norm", "pointwise"):
        return "pointwise"
    if op.kind == "other":
        return "pointwise" if "softmax" in op.name else "copy"
    return op.kind


def _is_pointwise(op: Op) -> bool:
    return op.kind == "pointwise" or is_batch_norm(op)


def _positions(op: Op) -> int:
    """Return output positions per image."""
    return math.prod(op.out_size)


def _copy(op: Op, channels: Affine) -> Kernel:
    """Return a kernel that reads and writes ``channels`` at the input size of ``op``."""
    size = op.out_size if op.kind == "cat" else op.in_size
    moved = float(op.batch * math.prod(size))
    moved_window = Window(inputs=int(moved), outputs=int(moved))
    return Kernel(
        *("copy", "cat", op.path, op.block, channels, channels),
        reads=moved,
        writes=moved,
        window=moved_window,
    )


def _window(op: Op, taps: int, outputs: int) -> Window:
    """Return the window of the kernel that starts with ``op``."""
    inputs = math.prod(op.in_size)
    if op.kind in ("conv", "pool"):
        return Window(taps, math.prod(op.stride), inputs, outputs, op.batch)
    if op.kind == "matmul":
        return Window(inputs=inputs, outputs=outputs, batch=op.batch)
    # Rows of a matrix and elements of a tensor are alike, whichever image they belong to.
    return Window(inputs=op.batch * inputs, outputs=op.batch * outputs)


def _minus(left: Affine, right: Affine) -> Affine:
    """Return the affine difference, exact for every width vector."""
    terms = dict(left.terms)
    for group, multiplicity in right.terms:
        terms[group] = terms.get(group, 0) - multiplicity
    kept = tuple(sorted((group, m) for group, m in terms.items() if m))
    return Affine(left.const - right.const, kept)
