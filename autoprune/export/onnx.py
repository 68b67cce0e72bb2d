"""A network as ONNX, with a batch dimension of any size, compared with PyTorch before it counts.

The file appears only after ONNX Runtime has given the same outputs as PyTorch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autoprune.errors import ExportError
from autoprune.files import write_atomically

#: Largest difference to PyTorch's outputs that an export may have.
TOLERANCE = 1e-4
#: A protocol buffer holds no more than 2 GiB.
_MAX_BYTES = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class OnnxCheck:
    """How an exported file compared with PyTorch.

    Attributes:
        max_abs_difference: Largest absolute difference of an output, over all batch sizes.
        batch_sizes: The batch sizes that were compared.
        input_names: Names of the graph's inputs.
        output_names: Names of the graph's outputs.
        opset: Version of the ONNX operators.
        size_bytes: Size of the file.
    """

    max_abs_difference: float
    batch_sizes: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    opset: int
    size_bytes: int


def export_onnx(
    model: nn.Module,
    inputs: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str],
    dynamic_batch: bool = True,
    tolerance: float = TOLERANCE,
) -> OnnxCheck:
    """Write ``model`` as one ONNX file and return how it compares with PyTorch.

    Inputs are called ``input`` (``input_0``, ... where there are several), outputs ``output``, the
    batch dimension ``batch``.

    Args:
        model: Any module; a copy in eval mode on the CPU is exported.
        inputs: Real inputs, tensors with the batch first; they are what the comparison runs on.
        path: The file to write; its folder must exist.
        metadata: Written into the file's metadata, e.g. source, plan and device profile.
        dynamic_batch: Leave the batch size open; otherwise it is that of ``inputs``.
        tolerance: Largest absolute difference allowed between ONNX Runtime's and PyTorch's outputs.

    Raises:
        ExportError: The network cannot be exported, or the export differs from it.
    """
    if not inputs or not all(isinstance(x, Tensor) and x.ndim for x in inputs):
        raise ExportError(
            "an ONNX export takes example inputs that are tensors with a batch dimension; "
            "wrap the network in a module whose forward takes such tensors"
        )
    network = copy.deepcopy(model).cpu().eval()
    given = tuple(x.detach().cpu() for x in inputs)
    batch = int(given[0].shape[0])
    proto = _exported(network, given, batch if dynamic_batch else None)
    onnx.helper.set_model_props(proto, dict(metadata))
    content = _checked(proto)
    session = _session(content)
    batch_sizes = tuple(dict.fromkeys([batch, 1, batch + 1] if dynamic_batch else [batch]))
    difference = max(
        _difference(network, session, _resized(given, batch, size), size) for size in batch_sizes
    )
    if not difference <= tolerance:
        raise ExportError(
            f"ONNX Runtime differs from PyTorch by {difference:.3g}, more than {tolerance:g}; "
            "the file was not written. Networks in half precision, or with outputs of large "
            "magnitude, may need a larger tolerance="
        )
    write_atomically(path, content)
    return OnnxCheck(
        max_abs_difference=difference,
        batch_sizes=batch_sizes,
        input_names=tuple(value.name for value in proto.graph.input),
        output_names=tuple(value.name for value in proto.graph.output),
        opset=max(entry.version for entry in proto.opset_import if entry.domain == ""),
        size_bytes=len(content),
    )


def _exported(network: nn.Module, given: tuple[Tensor, ...], batch: int | None) -> onnx.ModelProto:
    """Return the ONNX model; ``batch`` is the size that becomes open, ``None`` for none."""
    shapes: tuple[dict[int, Any], ...] | None = None
    example = given
    if batch is not None:
        open_batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: open_batch} if x.shape[0] == batch else {} for x in given)
        # Tracing takes an extent of 1 for a constant, so it sees at least two images.
        example = _resized(given, batch, max(batch, 2))
    names = ["input"] if len(given) == 1 else [f"input_{index}" for index in range(len(given))]
    with torch.no_grad():
        outputs = [x for x in tree_leaves(network(*example)) if isinstance(x, Tensor)]
    several = len(outputs) > 1
    output_names = [f"output_{i}" if several else "output" for i in range(len(outputs))]
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                example,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=names,
                output_names=output_names,
                verbose=False,
            )
    except Exception as error:  # whatever the network's code makes it raise
        way_out = "; dynamic_batch=False exports one batch size" if batch is not None else ""
        raise ExportError(
            f"{type(network).__name__} cannot be exported to ONNX: {_root(error)}{way_out}"
        ) from error
    assert program is not None  # with dynamo=True it is always returned
    proto: onnx.ModelProto = program.model_proto
    if any(shape and not _is_open(proto, index) for index, shape in enumerate(shapes or ())):
        raise ExportError(
            f"the exporter fixed the batch size of {type(network).__name__}, probably because its "
            "code depends on it; dynamic_batch=False exports one batch size"
        )
    return proto


def _checked(proto: onnx.ModelProto) -> bytes:
    """Return the serialised model without the exporter's notes, checked by ONNX."""
    # The notes quote source lines with the paths of this machine, in every node.
    del proto.graph.metadata_props[:]
    for node in [*proto.graph.node, *(node for f in proto.functions for node in f.node)]:
        del node.metadata_props[:]
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
    for initializer in proto.graph.initializer:
        del initializer.metadata_props[:]
    size = proto.ByteSize()
    if size > _MAX_BYTES:
        raise ExportError(
            f"the network takes {size / 2**30:.1f} GiB, one ONNX file holds at most 2 GiB; "
            "use the package (network.safetensors and plan.json) instead"
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exporter wrote a model that ONNX refuses: {error}") from error
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ExportError(f"ONNX Runtime cannot load the export: {error}") from error


def _difference(
    network: nn.Module,
    session: onnxruntime.InferenceSession,
    inputs: tuple[Tensor, ...],
    batch: int,
) -> float:
    """Return the largest absolute difference of the outputs; NaN where one is not a number."""
    with torch.no_grad():
        wanted = [x.numpy() for x in tree_leaves(network(*inputs)) if isinstance(x, Tensor)]
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    try:
        got = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ExportError(
            f"the export does not run at batch size {batch}: {error}; "
            "dynamic_batch=False exports one batch size"
        ) from error
    if [x.shape for x in got] != [x.shape for x in wanted]:
        raise ExportError(
            f"at batch size {batch} ONNX Runtime gives outputs of shapes {[x.shape for x in got]}, "
            f"PyTorch {[x.shape for x in wanted]}; dynamic_batch=False exports one batch size"
        )
    differences = [
        np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
        for a, b in zip(got, wanted, strict=True)
    ]
    return float(np.max(differences))


def _resized(inputs: tuple[Tensor, ...], batch: int, size: int) -> tuple[Tensor, ...]:
    """Return ``inputs`` with ``size`` instead of ``batch`` images, repeated or cut off."""
    index = torch.arange(size) % batch
    return tuple(x[index] if x.shape[0] == batch else x for x in inputs)


def _is_open(proto: onnx.ModelProto, index: int) -> bool:
    """Return whether the batch dimension of an input may have any size."""
    dims = proto.graph.input[index].type.tensor_type.shape.dim
    return bool(dims[0].dim_param)


def _root(error: BaseException) -> str:
    """Return the first line of the error that started it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide a deprecation inside torch's own exporter, which no user can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning
        )
        yield
