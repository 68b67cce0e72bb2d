"""What times modules: one backend per runtime, a plug-in each."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from autoprune.errors import MeasureError
from autoprune.measure.board import Rounds, Timer
from autoprune.registry import Registry

#: Example inputs: positional tensors.
Tensors = tuple[Tensor, ...]


class Backend(ABC):
    """Builds and times modules in one runtime.

    Attributes:
        rules: Fusion rules of its networks, see :data:`autoprune.latency.kernels.RUNTIMES`.
        precisions: What it can compute in.
        on_thread: Whether one thread computes in the thread that calls, so that its own clock can
            tell how long it ran.
        rounds: How often it times an item.
        assumed_alignment: Channel multiple that is taken for granted where measuring it would take
            too long; ``None`` measures it.
    """

    rules: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    on_thread: ClassVar[bool] = False
    rounds: ClassVar[Rounds] = Rounds()
    assumed_alignment: ClassVar[int | None] = None

    def __init__(self, *, threads: int, precision: str, clock: str) -> None:
        """Store parameters.

        Args:
            threads: Threads within an operator, on processors.
            precision: One of :attr:`precisions`.
            clock: ``wall`` or ``cpu``, see :func:`autoprune.measure.board.clock_of`.
        """
        self.threads, self.precision, self.clock = threads, precision, clock

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""

    @abstractmethod
    def version(self) -> str:
        """Return the runtime's version, ``"1.22.0"``."""

    @abstractmethod
    def build(self, module: nn.Module, inputs: Tensors) -> Timer:
        """Return a timer of ``module(*inputs)``.

        Args:
            module: In eval mode, fp32, on the processor; it is not changed.
            inputs: What it is called with.

        Raises:
            MeasureError: The runtime cannot run the module.
        """

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Set up what all timers share while the body runs, and put it back."""
        yield


#: Every backend, by the name ``autoprune profile --runtime`` takes.
BACKENDS: Registry[type[Backend]] = Registry("runtime", package="autoprune.measure.backends")


def open_backend(name: str, *, threads: int, precision: str, clock: str) -> Backend:
    """Return a backend that is there, with ``clock="auto"`` resolved.

    Args:
        name: One of :data:`BACKENDS`.
        threads: Threads within an operator, on processors.
        precision: What to compute in.
        clock: ``auto``, ``wall``, or ``cpu``: the time the thread ran, which a busy machine does
            not lengthen. ``auto`` is ``cpu`` where one thread does it all.

    Raises:
        UnknownNameError: There is no such backend.
        MeasureError: This machine lacks something, or the backend cannot do what is asked.
    """
    kind = BACKENDS[name]
    way_out = kind.missing()
    if way_out is not None:
        raise MeasureError(f"the runtime {name!r} is not on this machine: {way_out}")
    if precision not in kind.precisions:
        raise MeasureError(
            f"{name} measures in {' or '.join(kind.precisions)}, got --precision {precision}"
        )
    alone = kind.on_thread and threads == 1
    if clock == "cpu" and not alone:
        raise MeasureError(
            "the clock of the thread is only right where one thread does it all: on a processor "
            f"with --threads 1, not for {name} with --threads {threads}; use --clock wall"
        )
    if clock == "auto":
        clock = "cpu" if alone else "wall"
    return kind(threads=threads, precision=precision, clock=clock)
