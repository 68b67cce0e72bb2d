"""What every export format does: writes a network, and compares what its runtime makes of it."""

from __future__ import annotations

import dataclasses
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import nn

from autoprune.export.batches import TOLERANCE
from autoprune.export.onnx import ONNX_FILE, OnnxCheck, export_onnx
from autoprune.network.inputs import Inputs
from autoprune.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Exportable:
    """A finished network and what its exports need.

    Attributes:
        model: The network; it is not changed.
        inputs: Real inputs, the batch first, that exports are compared on.
        compared_on: What they are, in words.
        metadata: What files that can carry text say: source model, plan, device profile.
        save: Writes the network as a package into a folder.
        reload: Loads a package of the network.
        batch: Samples per deployment batch, what engines are tuned for.
        dynamic_batch: Leave the batch size open; otherwise it is that of ``inputs``.
        tolerance: Largest absolute difference to PyTorch's outputs.
    """

    model: nn.Module
    inputs: Inputs
    compared_on: str
    metadata: Mapping[str, str]
    save: Callable[[Path], object]
    reload: Callable[[Path], nn.Module]
    batch: int = 1
    dynamic_batch: bool = True
    tolerance: float = TOLERANCE

    @cached_property
    def onnx(self) -> tuple[bytes, OnnxCheck]:
        """The network as an ONNX file and how that compares, for every format that starts from it.

        Raises:
            ExportError: It cannot be exported, or differs.
        """
        with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
            path = Path(folder) / ONNX_FILE
            check = export_onnx(
                self.model,
                self.inputs,
                path,
                metadata=self.metadata,
                dynamic_batch=self.dynamic_batch,
                tolerance=self.tolerance,
            )
            return path.read_bytes(), check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how it compared with PyTorch.

    Attributes:
        format: Name of the format.
        files: Names of its files.
        runtime: What loaded and ran it, with its version; ``None`` where nothing did.
        max_abs_difference: Largest absolute difference of an output; ``None`` where it was not run.
        batch_sizes: The batch sizes that were compared.
        note: What a reader should know, a sentence or nothing.
    """

    format: str
    files: tuple[str, ...]
    runtime: str | None
    max_abs_difference: float | None
    batch_sizes: tuple[int, ...] = ()
    note: str = ""


class Format(ABC):
    """Writes networks in one format.

    Attributes:
        name: What ``--format`` takes.
    """

    name: ClassVar[str]

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        return None

    @abstractmethod
    def write(self, subject: Exportable, folder: Path) -> Exported:
        """Write the network, load it back in its own runtime, and return how the two compare.

        Args:
            subject: The network.
            folder: Where the files go; it exists.

        Raises:
            ExportError: The network cannot be written so, or differs.
        """


#: Every format, by the name ``autoprune export --format`` takes.
FORMATS: Registry[type[Format]] = Registry("export format", package="autoprune.export.formats")
