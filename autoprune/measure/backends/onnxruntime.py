"""ONNX Runtime on processors, and through its CUDA and TensorRT providers; imports it lazily."""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import torch
from torch import nn

from autoprune.errors import MeasureError
from autoprune.measure.backend import BACKENDS, Backend, Tensors
from autoprune.measure.board import Timer, onnx_timer
from autoprune.measure.onnx_file import onnx_bytes

#: The first has layer normalisation and attention as they are.
_OPSET = 17


@BACKENDS.register("onnxruntime")
class OnnxRuntime(Backend):
    """Times an ONNX export in ONNX Runtime.

    Attributes:
        provider: Execution provider.
        package: What brings the provider.
    """

    rules = "onnxruntime"
    on_thread = True
    provider: ClassVar[str] = "CPUExecutionProvider"
    package: ClassVar[str] = "onnxruntime"

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        if importlib.util.find_spec("onnxruntime") is None:
            return f"pip install {cls.package}"
        import onnxruntime

        present = onnxruntime.get_available_providers()
        if cls.provider in present:
            return None
        return (
            f"this onnxruntime has {', '.join(present)}, not {cls.provider}; pip install "
            f"{cls.package} (in place of onnxruntime), on a machine with an NVIDIA GPU"
        )

    def version(self) -> str:
        """Return the runtime's version."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def build(self, module: nn.Module, inputs: Tensors) -> Timer:
        """Return a timer of the module's export."""
        if self.precision == "fp16":
            module, inputs = _halved(module, inputs)
        content = onnx_bytes(module, inputs, opset=_OPSET)
        try:
            return onnx_timer(
                content, provider=self.provider, threads=self.threads, clock=self.clock
            )
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise MeasureError(
                f"ONNX Runtime cannot run {type(module).__name__}: {error}"
            ) from error


@BACKENDS.register("onnxruntime-cuda")
class OnnxRuntimeCuda(OnnxRuntime):
    """Times an ONNX export on an NVIDIA GPU through ONNX Runtime's own kernels."""

    on_thread = False
    precisions = ("fp32", "fp16")
    provider = "CUDAExecutionProvider"
    package = "onnxruntime-gpu"


@BACKENDS.register("onnxruntime-tensorrt")
class OnnxRuntimeTensorrt(OnnxRuntimeCuda):
    """Times an ONNX export on an NVIDIA GPU through TensorRT inside ONNX Runtime."""

    rules = "tensorrt"
    provider = "TensorrtExecutionProvider"


def _halved(module: nn.Module, inputs: Tensors) -> tuple[nn.Module, Tensors]:
    """Return a copy in half precision."""
    from autoprune.network.copies import deep_copy

    with torch.no_grad():
        half = deep_copy(module).half()
    return half, tuple(x.half() if x.is_floating_point() else x for x in inputs)
