"""What the backends of PyTorch share: device, precision, threads, waiting for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from autoprune.measure.backend import Backend, Tensors
from autoprune.measure.board import Timer, clock_of, nothing, timed
from autoprune.network.copies import deep_copy

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class TorchBackend(Backend):
    """Runs modules in PyTorch on the processor.

    Attributes:
        device: Where.
    """

    on_thread = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    device: ClassVar[str] = "cpu"

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        return None

    def version(self) -> str:
        """Return PyTorch's version."""
        return str(torch.__version__)

    def placed(self, module: nn.Module, inputs: Tensors) -> tuple[nn.Module, Tensors]:
        """Return a copy of a module, and inputs, on the device and in the precision."""
        dtype = _TYPES.get(self.precision, torch.float32)
        copied = deep_copy(module).to(self.device, dtype)
        return copied, tuple(
            x.to(self.device, dtype if x.is_floating_point() else None) for x in inputs
        )

    def timer(self, call: Callable[..., Any], inputs: Tensors) -> Timer:
        """Return a timer of ``call(*inputs)`` without gradients."""

        def action() -> None:
            with torch.inference_mode():
                call(*inputs)

        finish = torch.cuda.synchronize if self.device == "cuda" else nothing
        return timed(action, clock_of(self.clock), finish)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Set the number of threads while the body runs."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class CudaMixin(TorchBackend):
    """Runs modules on an NVIDIA GPU instead."""

    on_thread = False
    precisions = ("fp32", "tf32", "fp16", "bf16")
    device = "cuda"

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        if torch.cuda.is_available():
            return super().missing()
        return f"PyTorch {torch.__version__} sees no NVIDIA GPU; on one, install its CUDA build"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Set the number of threads, and whether TF32 may be used, while the body runs."""
        convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
        before = convolutions.allow_tf32, products.allow_tf32
        convolutions.allow_tf32 = products.allow_tf32 = self.precision == "tf32"
        try:
            with super().running():
                yield
        finally:
            convolutions.allow_tf32, products.allow_tf32 = before
