"""A program of ``torch.export``, compared in PyTorch without the network's Python code."""

from __future__ import annotations

from pathlib import Path

import torch

from autoprune.export.format import FORMATS, Exportable, Exported, Format
from autoprune.export.program import export_program

PROGRAM_FILE = "network.pt2"


@FORMATS.register("torch-export")
class TorchExport(Format):
    """Writes an archive that PyTorch runs without the network's Python code."""

    name = "torch-export"

    def write(self, subject: Exportable, folder: Path) -> Exported:
        """Write ``network.pt2``; see :class:`Format`."""
        check = export_program(
            subject.model,
            subject.inputs,
            folder / PROGRAM_FILE,
            metadata=subject.metadata,
            dynamic_batch=subject.dynamic_batch,
            tolerance=subject.tolerance,
        )
        return Exported(
            format=self.name,
            files=(PROGRAM_FILE,),
            runtime=f"torch {torch.__version__}",
            max_abs_difference=check.max_abs_difference,
            batch_sizes=check.batch_sizes,
        )
