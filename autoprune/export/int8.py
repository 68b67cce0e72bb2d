"""An ONNX model with 8-bit weights and activations, calibrated on samples (ONNX Runtime's QDQ).

Weights are quantised per channel. Activations are unsigned for processors: ONNX Runtime multiplies
unsigned by signed numbers with the processor's own 8-bit instructions, and signed by signed ones
without, which takes longer than single precision. TensorRT takes signed, symmetric activations and
biases in floating point only.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from autoprune.errors import ExportError
from autoprune.export.batches import compared, root_cause
from autoprune.export.format import Exportable
from autoprune.export.onnx import Flat, run_session, session_of
from autoprune.files import write_atomically
from autoprune.network.copies import deep_copy
from autoprune.network.inputs import normalised
from autoprune.tasks.base import Task

#: What a quantised file is made for, and what it is called.
Target = Literal["onnxruntime", "tensorrt"]
FILES: Mapping[Target, str] = {
    "onnxruntime": "network.int8.onnx",
    "tensorrt": "network.int8.tensorrt.onnx",
}
#: Samples that run at once while ranges are found.
_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Check:
    """How a quantised file compared with the network in single precision.

    Attributes:
        file: Its name.
        max_abs_difference: Largest absolute difference of an output to PyTorch's.
        batch_sizes: The batch sizes that were compared.
        accuracy: Fraction right on the search split, computed by ONNX Runtime.
        reference_accuracy: The same of the network in PyTorch, in single precision.
        samples: Samples of the search split that both were scored on.
        calibration_samples: Training samples that the ranges were found on.
    """

    file: str
    max_abs_difference: float
    batch_sizes: tuple[int, ...]
    accuracy: float
    reference_accuracy: float
    samples: int
    calibration_samples: int


def export_int8(
    subject: Exportable,
    task: Task,
    *,
    model: Path,
    target: Target,
    calibration_samples: int,
) -> Int8Check:
    """Write a quantised copy beside an ONNX file, and return how it compares with the network.

    Args:
        subject: The network.
        task: Where calibration samples and the search split come from.
        model: The network as :func:`~autoprune.export.onnx.export_onnx` wrote it.
        target: What the copy is made for; ONNX Runtime computes the comparison for either.
        calibration_samples: Training samples that ranges of activations are found on.

    Raises:
        ExportError: The network cannot be quantised, or does not run.
        TaskError: The task cannot score it.
    """
    name = session_of(model.read_bytes()).get_inputs()[0].name
    given = [inputs for inputs, _ in task.calibration(calibration_samples)]
    feeds = ({name: x.numpy()} for inputs in given for x in inputs.split(_BATCH))
    content = quantised(model.read_bytes(), feeds, target=target)
    session = session_of(content)
    network = Flat(deep_copy(subject.model).cpu(), normalised(subject.inputs)).eval()
    largest, sizes = compared(
        "the quantised network",
        network.tensors,
        dynamic=subject.dynamic_batch,
        wanted=lambda tensors: network(*tensors),
        got=lambda tensors, size: run_session(session, tensors, size),
    )
    if not np.isfinite(largest):
        raise ExportError("the quantised network's outputs are not finite; nothing was written")
    score = task.evaluate(OnnxModule(session), "search")
    reference = task.evaluate(subject.model, "search")
    write_atomically(model.with_name(FILES[target]), content)
    return Int8Check(
        file=FILES[target],
        max_abs_difference=largest,
        batch_sizes=sizes,
        accuracy=score.accuracy,
        reference_accuracy=reference.accuracy,
        samples=score.samples,
        calibration_samples=sum(map(len, given)),
    )


class OnnxModule(nn.Module):
    """A session as a module of one input and one output, for tasks that score modules."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        """Store the session."""
        super().__init__()
        self.session = session

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the first output."""
        outputs = run_session(self.session, (inputs,), len(inputs))
        return torch.from_numpy(outputs[0])


def quantised(
    content: bytes, feeds: Iterable[Mapping[str, np.ndarray]], *, target: Target = "onnxruntime"
) -> bytes:
    """Return an ONNX model in 8 bits with the metadata of the original.

    Constants are folded and batch normalisations merged first: what is quantised apart could not be
    merged any more.

    Args:
        content: The model in single precision.
        feeds: Inputs by name; the ranges of activations are their least and greatest values.
        target: What it is made for.

    Raises:
        ExportError: ONNX Runtime cannot quantise the model.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    signed = target == "tensorrt"
    kinds = quantization.QuantType
    with tempfile.TemporaryDirectory(prefix="autoprune-") as folder, _quiet():
        plain, merged, result = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        plain.write_bytes(content)
        try:
            quant_pre_process(plain, merged, skip_symbolic_shape=True)
            quantization.quantize_static(
                merged,
                result,
                _reader(iter(feeds)),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=kinds.QInt8 if signed else kinds.QUInt8,
                weight_type=kinds.QInt8,
                extra_options={"ActivationSymmetric": signed, "QuantizeBias": not signed},
            )
        except Exception as error:  # whatever its Python code or sessions raise
            raise ExportError(f"ONNX Runtime cannot quantise this: {root_cause(error)}") from error
        model = onnx.load(result)
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {**metadata, "autoprune.int8": target})
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def _reader(feeds: Iterator[Mapping[str, np.ndarray]]) -> Any:
    """Return what ONNX Runtime asks for calibration inputs."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc] # its package has no types
        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(feeds, None)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's hints to pre-process, which was done, out of the log."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
