"""A network as an exported program (``.pt2``), which runs without the network's Python code.

The file is an archive of JSON and raw tensors. PyTorch would put pickles into it for example inputs
and for tensors of special classes; neither is written here, and none is read.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from autoprune.errors import ExportError
from autoprune.export.batches import (
    TOLERANCE,
    arrays,
    batch_of,
    check_tolerance,
    compared,
    has_batch,
    quiet,
    resized,
    root_cause,
)
from autoprune.files import write_atomically
from autoprune.network.call import tensors_in
from autoprune.network.copies import deep_copy
from autoprune.network.inputs import Inputs, call_model, normalised

#: The file inside the archive that holds the metadata.
METADATA_FILE = "autoprune.json"


@dataclasses.dataclass(frozen=True)
class ProgramCheck:
    """How an exported program compared with PyTorch.

    Attributes:
        max_abs_difference: Largest absolute difference of an output, over all batch sizes.
        batch_sizes: The batch sizes that were compared.
        size_bytes: Size of the file.
    """

    max_abs_difference: float
    batch_sizes: tuple[int, ...]
    size_bytes: int


def export_program(
    model: nn.Module,
    inputs: Tensor | Inputs,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str],
    dynamic_batch: bool = True,
    tolerance: float = TOLERANCE,
) -> ProgramCheck:
    """Write ``model`` as a program of ``torch.export`` and return how it compares with PyTorch.

    Args:
        model: Any module; a copy in eval mode on the CPU is exported.
        inputs: Real inputs as :func:`~autoprune.network.trace.trace` takes them, the batch first;
            they are what the comparison runs on.
        path: The file to write, by custom called ``*.pt2``; its folder must exist.
        metadata: Written into the archive, e.g. source, plan and device profile.
        dynamic_batch: Leave the batch size open; otherwise it is that of ``inputs``.
        tolerance: Largest absolute difference allowed between the outputs of the program as loaded
            back and of the network.

    Raises:
        ExportError: The network cannot be exported, or the program differs from it.
    """
    network = deep_copy(model).cpu().eval()
    given: Inputs = _pytree.tree_map_only(Tensor, lambda x: x.detach().cpu(), normalised(inputs))
    batch = batch_of(tensors_in(given))
    content = _saved(_exported(network, given, batch if dynamic_batch else None), metadata)
    loaded = _loaded(content, "the exported program").module()

    def got(sample: Inputs, size: int) -> list[np.ndarray]:
        try:
            return arrays(tensors_in(call_model(loaded, sample)))
        except Exception as error:  # whatever the program's guards or operators raise
            raise ExportError(
                f"the program does not run at batch size {size}: {root_cause(error)}; "
                "dynamic_batch=False exports one batch size"
            ) from error

    largest, sizes = compared(
        "the program",
        given,
        dynamic=dynamic_batch,
        wanted=lambda sample: tensors_in(call_model(network, sample)),
        got=got,
    )
    check_tolerance("the exported program", largest, tolerance)
    write_atomically(path, content)
    return ProgramCheck(largest, sizes, len(content))


def load_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Return the program of a file; ``load_program(path).module()`` computes.

    A file with a pickle inside is refused. PyTorch still evaluates the expressions by which a
    program describes its shapes: load programs of people you trust.

    Raises:
        ExportError: The file is missing, damaged, or holds a pickle.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    return _loaded(content, os.fspath(path))


def _exported(network: nn.Module, inputs: Inputs, batch: int | None) -> ExportedProgram:
    """Return the program; ``batch`` is the size that becomes open, ``None`` for none."""
    shapes: Any = None
    if batch is not None:
        # Tracing takes an extent of 1 for a constant, so it sees at least two samples.
        inputs = resized(inputs, batch, max(batch, 2))
        shapes = _open_dimensions(inputs, max(batch, 2))
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(network, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # whatever the network's code makes it raise
        way_out = "; dynamic_batch=False exports one batch size" if batch is not None else ""
        raise ExportError(
            f"{type(network).__name__} cannot be exported: {root_cause(error)}{way_out}"
        ) from error
    program.example_inputs = None  # they would be written as a pickle
    return program


def _open_dimensions(inputs: Inputs, batch: int) -> Any:
    """Return which dimensions of the inputs are open, nested as they are."""
    extent = torch.export.Dim("batch", min=1)

    def dimensions(value: object) -> dict[int, Any] | None:
        if not isinstance(value, Tensor):
            return None
        return {0: extent} if has_batch(value, batch) else {}

    return _pytree.tree_map(dimensions, inputs)


def _saved(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    try:
        with quiet():
            extra = {METADATA_FILE: json.dumps(dict(metadata), sort_keys=True)}
            torch.export.save(program, buffer, extra_files=extra)
    except Exception as error:  # whatever a tensor or operator that cannot be written raises
        raise ExportError(f"the program cannot be written: {root_cause(error)}") from error
    return buffer.getvalue()


def _loaded(content: bytes, name: str) -> ExportedProgram:
    """Return the program of an archive without pickles."""
    _refuse_pickles(content, name)
    try:
        with quiet():
            return torch.export.load(io.BytesIO(content))
    except Exception as error:  # a damaged archive can raise anything
        raise ExportError(f"{name} is damaged: {root_cause(error)}") from error


def _refuse_pickles(content: bytes, name: str) -> None:
    """Raise unless an archive is a program in which everything is JSON or raw tensors."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {info.filename: info for info in archive.infolist()}
            pickles = [path for path in files if _is_pickle(path, files[path], archive)]
            known = any("/models/" in path for path in files)
    except (zipfile.BadZipFile, ValueError, AttributeError, TypeError) as error:
        raise ExportError(f"{name} is no exported program: {error}") from error
    if pickles or not known:
        raise ExportError(
            f"{name} holds pickles ({', '.join(pickles[:3])}), which could run any code; export it "
            "again with autoprune"
            if pickles
            else f"{name} is an archive, but holds no exported program"
        )


def _is_pickle(path: str, info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> bool:
    """Return whether PyTorch would unpickle a file of the archive, or what it lists."""
    folder = f"/{path}"
    if path.endswith((".pkl", ".pt")) or "/custom_obj" in folder or "/opaque_obj" in folder:
        return info.file_size > 0
    if folder.endswith("_config.json"):
        payloads = json.loads(archive.read(path))["config"].values()
        return any(payload["use_pickle"] for payload in payloads)
    return False
