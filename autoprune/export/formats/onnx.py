"""ONNX, compared in ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from autoprune.export.format import FORMATS, Exportable, Exported, Format
from autoprune.export.onnx import ONNX_FILE
from autoprune.files import write_atomically


@FORMATS.register("onnx")
class Onnx(Format):
    """Writes one ONNX file with the network's source, plan and profile inside."""

    name = "onnx"

    def write(self, subject: Exportable, folder: Path) -> Exported:
        """Write ``network.onnx``; see :class:`Format`."""
        content, check = subject.onnx
        write_atomically(folder / ONNX_FILE, content)
        return Exported(
            format=self.name,
            files=(ONNX_FILE,),
            runtime=f"onnxruntime {importlib.metadata.version('onnxruntime')}",
            max_abs_difference=check.max_abs_difference,
            batch_sizes=check.batch_sizes,
        )
