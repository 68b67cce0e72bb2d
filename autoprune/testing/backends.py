"""Conformance suite for measuring backends, and a runtime whose times follow a formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import MeasureError, TraceError
from autoprune.latency.kernels import FAMILIES, fuse
from autoprune.latency.roofline import Roofline, RooflinePredictor
from autoprune.measure.backend import BACKENDS, Backend, Tensors, open_backend
from autoprune.measure.board import Rounds, Timer
from autoprune.measure.shapes import KernelShape
from autoprune.measure.subjects import idle
from autoprune.network.trace import trace

#: What every family of kernels is limited by in the runtime that does not exist.
LIMITS = Roofline(overhead_ms=0.02, peak_gmacs_per_s=20.0, bandwidth_gb_s=5.0)
#: What it takes to call that runtime.
CALL_MS = 0.05


class FormulaBackend(Backend):
    """A runtime whose times are those of a roofline, with noise, on a clock of its own.

    Attributes:
        clock_s: Seconds that have passed on its clock.
        built: Modules that were built.
        passes: Passes that were made.
        slow: Factor on everything during the passes with these numbers.
        refuses: Types of modules that it cannot run.
    """

    rules = "eager"
    rounds = Rounds(warm_up=1, count=5, most=12)

    def __init__(
        self,
        *,
        threads: int = 1,
        precision: str = "fp32",
        clock: str = "wall",
        noise: float = 0.005,
        slow: Mapping[int, float] | None = None,
        build_s: float = 0.0,
        refuses: tuple[type[nn.Module], ...] = (),
    ) -> None:
        """Store parameters.

        Args:
            threads: As any backend's.
            precision: As any backend's.
            clock: As any backend's.
            noise: Relative standard deviation of a pass.
            slow: See :attr:`slow`.
            build_s: Seconds that building a module takes on its clock.
            refuses: See :attr:`refuses`.
        """
        super().__init__(threads=threads, precision=precision, clock=clock)
        self.noise, self.slow, self.build_s, self.refuses = (
            noise,
            dict(slow or {}),
            build_s,
            refuses,
        )
        self.clock_s = 0.0
        self.built = self.passes = 0
        self._generator = np.random.default_rng(0)

    @classmethod
    def missing(cls) -> str | None:
        """Return ``None``: it needs nothing."""
        return None

    def version(self) -> str:
        """Return a version."""
        return "1"

    def build(self, module: nn.Module, inputs: Tensors) -> Timer:
        """Return a timer that returns what the formula says."""
        if isinstance(module, self.refuses):
            raise MeasureError(f"cannot run {type(module).__name__}")
        exact = CALL_MS + formula_ms(module, inputs)
        self.built += 1
        self.clock_s += self.build_s

        def timer(passes: int) -> list[float]:
            times = []
            for _ in range(passes):
                factor = self.slow.get(self.passes, 1.0) * self._generator.normal(1, self.noise)
                times.append(exact * factor)
                self.clock_s += times[-1] * 1e-3
                self.passes += 1
            return times

        return timer


def formula_ms(module: nn.Module, inputs: Tensors) -> float:
    """Return the exact milliseconds of a module in :class:`FormulaBackend`, without the call."""
    try:
        ops = trace(module, inputs).ops
    except TraceError:  # no parameters: pooling, sums, products, or nothing at all
        elements = sum(x.numel() for x in inputs)
        return (
            0.0 if elements == 1 else LIMITS.overhead_ms + elements * 8e-6 / LIMITS.bandwidth_gb_s
        )
    table = fuse(ops, FormulaBackend.rules)
    predictor = RooflinePredictor(table, dict.fromkeys(FAMILIES, LIMITS), bytes_per_element=4)
    return float(predictor.predict(ops.full_widths, ops.full_keep)[0])


class BackendConformance(ABC):
    """What holds for every backend; skipped where the machine lacks the runtime.

    No time is compared with another: machines are busy.
    """

    @abstractmethod
    def name(self) -> str:
        """Return the backend's name."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Return the backend with one thread."""
        way_out = BACKENDS[self.name()].missing()
        if way_out is not None:
            pytest.skip(way_out)
        return open_backend(self.name(), threads=1, precision="fp32", clock="auto")

    def test_tells_how_to_get_it(self) -> None:
        """What is missing is told in words, or nothing is."""
        way_out = BACKENDS[self.name()].missing()
        assert way_out is None or way_out.strip()

    def test_times_are_positive_and_as_many_as_passes(self, backend: Backend) -> None:
        """Every pass has a time of its own."""
        with backend.running():
            timer = backend.build(*KernelShape("conv", 8, 8, 8, 8, kernel=(3, 3)).module())
            times = list(timer(3))
        assert len(times) >= 3
        assert min(times) > 0

    def test_module_and_inputs_stay_as_they_are(self, backend: Backend) -> None:
        """The module that was handed over is not changed."""
        module, inputs = KernelShape("linear", 8, 4, 5).module()
        before = [p.clone() for p in (*module.parameters(), *inputs)]
        with backend.running():
            backend.build(module, inputs)(1)
        after = [*module.parameters(), *inputs]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert not module.training

    def test_runs_what_has_no_parameters(self, backend: Backend) -> None:
        """Kernels without weights, and next to nothing, run as well."""
        with backend.running():
            for module, inputs in (idle(), KernelShape("matmul", 8, 12, 5, groups=2).module()):
                assert backend.build(module, inputs)(1)

    def test_version_and_rules(self, backend: Backend) -> None:
        """A version is a word, and networks fuse by known rules."""
        assert backend.version().strip()
        assert " " not in backend.version()
        fuse(trace(*KernelShape("conv", 4, 4, 4, 4).module()).ops, backend.rules)

    def test_threads_are_put_back(self, backend: Backend) -> None:
        """What is set up for measuring ends with it."""
        before = torch.get_num_threads()
        with backend.running():
            pass
        assert torch.get_num_threads() == before
