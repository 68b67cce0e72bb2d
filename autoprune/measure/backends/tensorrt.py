"""TensorRT through NVIDIA's command-line tool ``trtexec``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from autoprune.errors import MeasureError
from autoprune.measure.backend import BACKENDS, Backend, Tensors
from autoprune.measure.board import TENSORRT_ROUNDS, Timer, find_trtexec, trtexec_timer
from autoprune.measure.board import trtexec_version as version_of
from autoprune.measure.onnx_file import onnx_bytes


@BACKENDS.register("tensorrt")
class TensorRt(Backend):
    """Times engines that trtexec builds; the time on the GPU alone, as trtexec reports it."""

    rules = "tensorrt"
    precisions = ("fp32", "tf32", "fp16", "int8")
    rounds = TENSORRT_ROUNDS
    assumed_alignment = 8

    def __init__(self, *, threads: int, precision: str, clock: str) -> None:
        """Store parameters; see :class:`Backend`."""
        super().__init__(threads=threads, precision=precision, clock=clock)
        self._folder: Path | None = None
        self._count = 0

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        if find_trtexec() is None:
            return (
                "no trtexec on the PATH nor in /usr/src/tensorrt/bin; it comes with TensorRT "
                "(JetPack has it, elsewhere https://developer.nvidia.com/tensorrt)"
            )
        return None

    def version(self) -> str:
        """Return TensorRT's version."""
        return version_of(self._trtexec())

    def build(self, module: nn.Module, inputs: Tensors) -> Timer:
        """Return a timer of the module's engine; engines live as long as :meth:`running`."""
        if self._folder is None:
            raise MeasureError("TensorRT engines are built inside running()")
        file = self._folder / f"{self._count}.onnx"
        self._count += 1
        file.write_bytes(onnx_bytes(module, inputs))
        try:
            return trtexec_timer(self._trtexec(), file, precision=self.precision)
        except RuntimeError as error:
            raise MeasureError(str(error)) from error

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Keep a folder for engines while the body runs."""
        with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
            self._folder = Path(folder)
            try:
                yield
            finally:
                self._folder = None

    @staticmethod
    def _trtexec() -> str:
        found = find_trtexec()
        if found is None:
            raise MeasureError(str(TensorRt.missing()))
        return found
