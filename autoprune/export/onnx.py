"""A network as ONNX, with a batch dimension of any size, compared with PyTorch before it counts.

The file appears only after ONNX Runtime has given the same outputs as PyTorch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from autoprune.errors import ExportError
from autoprune.export.batches import (
    TOLERANCE,
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
from autoprune.network.inputs import Inputs, normalised

#: What the file is called by custom.
ONNX_FILE = "network.onnx"
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
    inputs: Tensor | Inputs,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str],
    dynamic_batch: bool = True,
    tolerance: float = TOLERANCE,
) -> OnnxCheck:
    """Write ``model`` as one ONNX file and return how it compares with PyTorch.

    Inputs are called ``input`` (``input_0``, ... where there are several), or as the keywords that
    they are given by; outputs ``output``, the batch dimension ``batch``. Every tensor among the
    inputs becomes an input of the graph, every other value a constant of it.

    Args:
        model: Any module; a copy in eval mode on the CPU is exported.
        inputs: Real inputs as :func:`~autoprune.network.trace.trace` takes them, the batch first;
            they are what the comparison runs on.
        path: The file to write; its folder must exist.
        metadata: Written into the file's metadata, e.g. source, plan and device profile.
        dynamic_batch: Leave the batch size open; otherwise it is that of ``inputs``.
        tolerance: Largest absolute difference allowed between ONNX Runtime's and PyTorch's outputs.

    Raises:
        ExportError: The network cannot be exported, or the export differs from it.
    """
    network = Flat(deep_copy(model).cpu(), normalised(inputs)).eval()
    given = network.tensors
    batch = batch_of(given)
    proto = _exported(network, given, batch if dynamic_batch else None)
    onnx.helper.set_model_props(proto, dict(metadata))
    content = _checked(proto)
    session = session_of(content)
    largest, batch_sizes = compared(
        "ONNX Runtime",
        given,
        dynamic=dynamic_batch,
        wanted=lambda tensors: network(*tensors),
        got=lambda tensors, size: run_session(session, tensors, size),
    )
    check_tolerance("ONNX Runtime", largest, tolerance)
    write_atomically(path, content)
    return OnnxCheck(
        max_abs_difference=largest,
        batch_sizes=batch_sizes,
        input_names=tuple(value.name for value in proto.graph.input),
        output_names=tuple(value.name for value in proto.graph.output),
        opset=max(entry.version for entry in proto.opset_import if entry.domain == ""),
        size_bytes=len(content),
    )


class Flat(nn.Module):
    """Takes the tensors among a model's inputs, and returns those among its outputs, one by one."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        placed, self._form = _pytree.tree_flatten_with_path(inputs)
        self._values = [None if isinstance(value, Tensor) else value for _, value in placed]
        self._places = [i for i, (_, value) in enumerate(placed) if isinstance(value, Tensor)]
        self.tensors = tuple(placed[place][1].detach().cpu() for place in self._places)
        if isinstance(inputs, Mapping):
            self.names = [_word(placed[place][0]) for place in self._places]
        elif len(self.tensors) == 1:
            self.names = ["input"]
        else:
            self.names = [f"input_{index}" for index in range(len(self.tensors))]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return every tensor of the output, in order."""
        values = list(self._values)
        for place, tensor in zip(self._places, tensors, strict=True):
            values[place] = tensor
        inputs = _pytree.tree_unflatten(values, self._form)
        output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(*inputs)
        return tuple(tensors_in(output))


def _word(path: tuple[Any, ...]) -> str:
    """Return ``"past_0"`` for the place ``["past"][0]``."""
    return "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def _exported(network: Flat, given: tuple[Tensor, ...], batch: int | None) -> onnx.ModelProto:
    """Return the ONNX model; ``batch`` is the size that becomes open, ``None`` for none."""
    shapes: tuple[dict[int, Any], ...] | None = None
    example = given
    if batch is not None:
        open_batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: open_batch} if has_batch(x, batch) else {} for x in given)
        # Tracing takes an extent of 1 for a constant, so it sees at least two images.
        example = resized(given, batch, max(batch, 2))
    with torch.no_grad():
        outputs = network(*example)
    several = len(outputs) > 1
    output_names = [f"output_{i}" if several else "output" for i in range(len(outputs))]
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                example,
                dynamo=True,
                dynamic_shapes=None if shapes is None else (shapes,),
                input_names=network.names,
                output_names=output_names,
                verbose=False,
            )
    except Exception as error:  # whatever the network's code makes it raise
        way_out = "; dynamic_batch=False exports one batch size" if batch is not None else ""
        raise ExportError(
            f"{type(network.model).__name__} cannot be exported to ONNX: "
            f"{root_cause(error)}{way_out}"
        ) from error
    assert program is not None  # with dynamo=True it is always returned
    proto: onnx.ModelProto = program.model_proto
    if any(shape and not _is_open(proto, index) for index, shape in enumerate(shapes or ())):
        raise ExportError(
            f"the exporter fixed the batch size of {type(network.model).__name__}, probably "
            "because its code depends on it; dynamic_batch=False exports one batch size"
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
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exporter wrote a model that ONNX refuses: {error}") from error
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    """Return a session of one thread on the processor.

    Raises:
        ExportError: ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ExportError(f"ONNX Runtime cannot load the export: {error}") from error


def run_session(
    session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...], batch: int
) -> list[np.ndarray]:
    """Return a session's outputs.

    Raises:
        ExportError: It does not run at this batch size.
    """
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    try:
        outputs: list[np.ndarray] = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise ExportError(
            f"the export does not run at batch size {batch}: {error}; "
            "dynamic_batch=False exports one batch size"
        ) from error
    return outputs


def _is_open(proto: onnx.ModelProto, index: int) -> bool:
    """Return whether the batch dimension of an input may have any size."""
    dims = proto.graph.input[index].type.tensor_type.shape.dim
    return bool(dims[0].dim_param)
