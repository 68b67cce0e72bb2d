"""OpenVINO's own format, compared in OpenVINO; the only file that imports it."""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from autoprune.errors import ExportError
from autoprune.export.batches import check_tolerance, compared, root_cause
from autoprune.export.format import FORMATS, Exportable, Exported, Format
from autoprune.export.onnx import Flat
from autoprune.network.copies import deep_copy
from autoprune.network.inputs import normalised

#: Weights lie beside the graph, under the same name.
GRAPH_FILE, WEIGHTS_FILE = "network.xml", "network.bin"
#: By itself OpenVINO computes in bfloat16 where the processor can.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


@FORMATS.register("openvino")
class OpenVino(Format):
    """Writes a graph and its weights in single precision, the batch size open."""

    name = "openvino"

    @classmethod
    def missing(cls) -> str | None:
        """Return how to get what this machine lacks for it, ``None`` where nothing is."""
        if importlib.util.find_spec("openvino") is None:
            return "pip install openvino"
        return None

    def write(self, subject: Exportable, folder: Path) -> Exported:
        """Write ``network.xml`` and ``network.bin``; see :class:`Format`."""
        openvino = import_openvino()
        content, _ = subject.onnx
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
            place = Path(temporary)
            try:
                _convert(openvino, content, place, subject.metadata)
                compiled = openvino.Core().compile_model(place / GRAPH_FILE, "CPU", _EXACT)
                largest, sizes = _difference(compiled, subject)
            except ExportError:
                raise
            except Exception as error:  # OpenVINO's errors have no common base
                raise ExportError(
                    f"OpenVINO cannot take {type(subject.model).__name__}: {root_cause(error)}"
                ) from error
            check_tolerance("OpenVINO", largest, subject.tolerance)
            # The graph last: without its weights it does not load.
            for name in (WEIGHTS_FILE, GRAPH_FILE):
                os.replace(place / name, folder / name)
        return Exported(
            format=self.name,
            files=(GRAPH_FILE, WEIGHTS_FILE),
            runtime=f"openvino {str(openvino.__version__).partition('-')[0]}",
            max_abs_difference=largest,
            batch_sizes=sizes,
        )


def import_openvino() -> Any:
    """Return OpenVINO's module; what it warns of when it is imported no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino
    return openvino


def _convert(openvino: Any, content: bytes, place: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file in OpenVINO's format."""
    model = openvino.Core().read_model(io.BytesIO(content))
    for key, text in metadata.items():
        model.set_rt_info(text, key.split("."))
    # Half precision, the default, changes outputs by more than any tolerance here.
    openvino.save_model(model, place / GRAPH_FILE, compress_to_fp16=False)


def _difference(compiled: Any, subject: Exportable) -> tuple[float, tuple[int, ...]]:
    """Return the largest difference of outputs, and the batch sizes that were compared."""
    network = Flat(deep_copy(subject.model).cpu(), normalised(subject.inputs)).eval()

    def got(inputs: tuple[Tensor, ...], size: int) -> list[np.ndarray]:
        found = compiled([x.numpy() for x in inputs])
        return [np.asarray(found[output]) for output in compiled.outputs]

    return compared(
        "OpenVINO",
        network.tensors,
        dynamic=subject.dynamic_batch,
        wanted=lambda inputs: network(*inputs),
        got=got,
    )
