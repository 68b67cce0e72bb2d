"""PyTorch through ``torch.compile`` (Inductor), on processors and NVIDIA GPUs."""

from __future__ import annotations

import shutil
import warnings

import torch
from torch import nn

from autoprune.errors import MeasureError
from autoprune.export.batches import root_cause
from autoprune.measure.backend import BACKENDS, Tensors
from autoprune.measure.board import Timer
from autoprune.measure.torch_backend import CudaMixin, TorchBackend


@BACKENDS.register("torch-compile")
class TorchCompile(TorchBackend):
    """Times a compiled module on the processor."""

    rules = "compile"

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        if any(map(shutil.which, ("c++", "g++", "clang++"))):
            return super().missing()
        return "Inductor needs a C++ compiler; on Debian or Ubuntu: apt install g++"

    def build(self, module: nn.Module, inputs: Tensors) -> Timer:
        """Return a timer of the compiled module."""
        placed, tensors = self.placed(module, inputs)
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                # What Inductor warns of (deprecations in itself, TF32) no user can act on.
                warnings.simplefilter("ignore")
                # What was compiled for other networks counts towards a limit of recompilations.
                torch._dynamo.reset()
                compiled = torch.compile(placed, dynamic=False)
                compiled(*tensors)
        except Exception as error:  # whatever the compiler raises
            raise MeasureError(
                f"torch.compile cannot compile {type(module).__name__}: {root_cause(error)}"
            ) from error
        return self.timer(compiled, tensors)


@BACKENDS.register("torch-compile-cuda")
class TorchCompileCuda(CudaMixin, TorchCompile):
    """Times a compiled module on an NVIDIA GPU."""
