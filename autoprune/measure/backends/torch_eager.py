"""PyTorch as it is, on processors and NVIDIA GPUs."""

from __future__ import annotations

from torch import nn

from autoprune.measure.backend import BACKENDS, Tensors
from autoprune.measure.board import Timer
from autoprune.measure.torch_backend import CudaMixin, TorchBackend


@BACKENDS.register("torch")
class TorchEager(TorchBackend):
    """Times a module's own forward pass on the processor."""

    rules = "eager"

    def build(self, module: nn.Module, inputs: Tensors) -> Timer:
        """Return a timer of the module on this backend's device."""
        placed, tensors = self.placed(module, inputs)
        return self.timer(placed, tensors)


@BACKENDS.register("torch-cuda")
class TorchEagerCuda(CudaMixin, TorchEager):
    """Times a module's own forward pass on an NVIDIA GPU."""
