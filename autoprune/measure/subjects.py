"""What is measured: networks pruned at random, and single kernels of such networks."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import MeasureError
from autoprune.latency.layers import rows_from_ops
from autoprune.measure.board import kernel_name
from autoprune.measure.shapes import KernelShape, measurable, shape_of
from autoprune.network.inputs import Inputs, batch_size
from autoprune.network.network import Network
from autoprune.network.trace import trace
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified
from autoprune.strategy.settings import load_space_settings
from autoprune.strategy.space import Candidate, SearchSpace, build_space

#: Of how many networks of a model one is left for the check.
CHECK_EVERY = 3
#: Draws of a kernel before it is taken for granted that all kernels have been measured.
_TRIES = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """Something to time.

    Attributes:
        name: What its row is called.
        kind: A whole network, or a single kernel.
        columns: The cells of its row that describe it.
        module: In eval mode, fp32, on the processor.
        inputs: What the module is called with.
        layers: A network's layer list.
    """

    name: str
    kind: Literal["network", "kernel"]
    columns: dict[str, Any]
    module: nn.Module
    inputs: tuple[Tensor, ...]
    layers: list[list[Any]] | None = None

    @property
    def batch(self) -> int:
        """Images per pass."""
        return int(self.columns.get("batch", 1))

    @property
    def elements(self) -> int:
        """Elements of its parameters and inputs, about."""
        tensors = [*self.module.parameters(), *self.inputs]
        return sum(tensor.numel() for tensor in tensors)


@dataclasses.dataclass(frozen=True)
class Draw:
    """A subject that is built when it is wanted.

    Attributes:
        name: The subject's.
        kind: The subject's.
        build: Returns it.
    """

    name: str
    kind: Literal["network", "kernel"]
    build: Callable[[], Subject]


class Source:
    """A model that networks and kernels are drawn from."""

    def __init__(self, name: str, model: nn.Module, inputs: Tensor | Inputs) -> None:
        """Trace and verify the model.

        Args:
            name: What its networks are called.
            model: Any module.
            inputs: Positional tensors to call it with, one deployment batch.

        Raises:
            TraceError: The model does not run.
            MeasureError: The inputs are not all positional tensors.
        """
        self.name = name
        self.network: Network = verified(trace(model, inputs))
        given = self.network.inputs
        if not isinstance(given, tuple) or not all(isinstance(x, Tensor) for x in given):
            raise MeasureError(
                f"{name} takes other inputs than positional tensors; give a module that takes such "
                "tensors, by file.py:factory"
            )
        self.inputs: tuple[Tensor, ...] = given
        self.batch = batch_size(given)
        self._surgeon = Surgeon(self.network)
        self._kernels = measurable(self.network.ops)

    def space(self, alignment: int) -> SearchSpace:
        """Return what a search would choose from on a device of this alignment."""
        groups, blocks = self.network.groups, self.network.blocks
        return build_space(groups, blocks, load_space_settings("default"), alignment=alignment)

    def candidate(self, space: SearchSpace, generator: np.random.Generator) -> Candidate:
        """Return a random candidate: anything from a little to as much as is allowed goes."""
        level = generator.uniform()
        ratios = [generator.uniform(0, dim.max_ratio) * level for dim in space.dimensions]
        dropped = generator.uniform(size=len(space.blocks)) < 0.2 * level
        return space.snap(Candidate(tuple(ratios), tuple(dropped.tolist())))

    def cut(self, space: SearchSpace, candidate: Candidate) -> nn.Module:
        """Return the network of a candidate; which units stay changes no latency."""
        return self._surgeon.cut(first_units(self.network, space, candidate)).eval()

    def kernel(self, space: SearchSpace, generator: np.random.Generator) -> KernelShape | None:
        """Return a random kernel of a random candidate, ``None`` where there is none."""
        if not self._kernels:
            return None
        widths = space.widths([self.candidate(space, generator)])[0]
        return shape_of(self._kernels[generator.integers(len(self._kernels))], widths)


class Sampler:
    """Draws networks and kernels of some models, the same ones every time."""

    def __init__(
        self, sources: Sequence[Source], *, alignment: int, kernels: int = 2, seed: int = 0
    ) -> None:
        """Build the search spaces.

        Args:
            sources: The models.
            alignment: Channel multiple of the device.
            kernels: Kernels drawn per network.
            seed: Of everything random.
        """
        self.sources, self.kernels, self.seed = sources, kernels, seed
        self.spaces = [source.space(alignment) for source in sources]

    def laps(self) -> Iterator[list[Draw]]:
        """Yield a network of each model with some kernels of it, forever.

        The first lap has the unpruned networks. Every third network of a model is for the check.
        """
        drawn: set[str] = set()
        number = 0
        while True:
            lap = []
            for source, space in zip(self.sources, self.spaces, strict=True):
                lap.append(self._network(source, space, number))
                lap.extend(self._kernels_of(source, space, number, drawn))
            yield lap
            number += 1

    def _network(self, source: Source, space: SearchSpace, number: int) -> Draw:
        name = f"{source.name}#{number}"

        def build() -> Subject:
            generator = self._generator(name)
            candidate = source.candidate(space, generator) if number else space.dense()
            module = source.cut(space, candidate)
            role = "fit" if number % CHECK_EVERY else "check"
            return network_subject(name, module, source.inputs, role=role)

        return Draw(name, "network", build)

    def _kernels_of(
        self, source: Source, space: SearchSpace, number: int, drawn: set[str]
    ) -> Iterator[Draw]:
        generator = self._generator(f"kernels of {source.name}#{number}")
        wanted = self.kernels
        for _ in range(_TRIES * wanted):
            shape = source.kernel(space, generator)
            draw = None if shape is None else kernel_draw(shape)
            if draw is not None and draw.name not in drawn:
                drawn.add(draw.name)
                yield draw
                wanted -= 1
            if not wanted:
                return

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])


def first_units(network: Network, space: SearchSpace, candidate: Candidate) -> PruningPlan:
    """Return the plan of a candidate that keeps the first units; which ones changes no latency."""
    widths = space.network_widths(space.widths([candidate]))[0]
    keep = space.keep([candidate])[0]
    pairs = zip(network.groups, widths, strict=True)
    kept = {group.name: tuple(range(int(width))) for group, width in pairs}
    blocks = zip(network.blocks, keep, strict=True)
    return PruningPlan(kept, tuple(block.name for block, stays in blocks if not stays))


def network_subject(
    name: str, module: nn.Module, inputs: tuple[Tensor, ...], *, role: str
) -> Subject:
    """Return a whole network, in eval mode, as something to time.

    Args:
        name: What its row is called.
        module: The network.
        inputs: One deployment batch.
        role: What the row is for, ``fit`` or ``check``.
    """
    columns = {"network": name, "role": role, "batch": batch_size(inputs)}
    layers = rows_from_ops(trace(module, inputs).ops)
    return Subject(name, "network", columns, module, inputs, layers)


def kernel_draw(shape: KernelShape) -> Draw:
    """Return the draw of one kernel."""
    columns = {"batch": shape.batch, **shape.columns()}
    name = kernel_name(columns)

    def build() -> Subject:
        module, inputs = shape.module()
        return Subject(name, "kernel", columns, module, inputs)

    return Draw(name, "kernel", build)


def reference() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return what tells whether the machine is as fast as before: in computing and in moving data.

    A convolution that fits into the nearest caches, and a matrix that does not.
    """
    convolution, (image,) = KernelShape("conv", 64, 64, 28, 28, kernel=(3, 3)).module()
    linear, (row,) = KernelShape("linear", 1024, 1024, 1).module()
    return _Both(convolution, linear).eval(), (image, row)


class _Both(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each module makes of its own input."""
        return self.first(left), self.second(right)


def idle() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a module that does next to nothing: what a call takes beyond the kernel."""
    return nn.ReLU().eval(), (torch.zeros(1, 1, 1, 1),)
