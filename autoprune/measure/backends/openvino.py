"""OpenVINO on processors."""

from __future__ import annotations

import importlib.util
import io

from torch import nn

from autoprune.errors import MeasureError
from autoprune.export.formats.openvino import import_openvino
from autoprune.measure.backend import BACKENDS, Backend, Tensors
from autoprune.measure.board import Timer, clock_of, nothing, timed
from autoprune.measure.onnx_file import onnx_bytes


@BACKENDS.register("openvino")
class OpenVino(Backend):
    """Times an ONNX export in OpenVINO, optimised for latency."""

    rules = "openvino"
    precisions = ("fp32", "bf16", "fp16")

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        if importlib.util.find_spec("openvino") is None:
            return "pip install openvino"
        return None

    def version(self) -> str:
        """Return the runtime's version."""
        return str(import_openvino().__version__).partition("-")[0]

    def build(self, module: nn.Module, inputs: Tensors) -> Timer:
        """Return a timer of the module's export."""
        openvino = import_openvino()
        precision = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[self.precision]
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        content = io.BytesIO(onnx_bytes(module, inputs))
        try:
            core = openvino.Core()
            network = core.compile_model(core.read_model(content), "CPU", settings)
            request = network.create_infer_request()
            feed = [x.numpy() for x in inputs]
            request.infer(feed)
        except Exception as error:  # OpenVINO's errors have no common base
            raise MeasureError(f"OpenVINO cannot run {type(module).__name__}: {error}") from error
        return timed(lambda: request.infer(feed, share_inputs=True), clock_of(self.clock), nothing)
