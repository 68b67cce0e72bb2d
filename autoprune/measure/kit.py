"""Kits: folders of small ONNX files and one script that measure a board without autoprune."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
from torch import Tensor, nn

from autoprune.errors import MeasureError
from autoprune.files import write_atomically
from autoprune.measure import board
from autoprune.measure.board import KERNELS_FILE, KIT_FILE, LAYERS_FILE, NETWORKS_FILE
from autoprune.measure.onnx_file import onnx_bytes
from autoprune.measure.subjects import Draw, idle, reference
from autoprune.version import __version__

FORMAT, VERSION = "autoprune-kit", 1
SCRIPT, README = "run.py", "README.txt"

#: Items that the script holds ready at a time; boards have little memory.
_CHUNK = 6
_FOLDER, _WEIGHTS = "onnx", "weights.bin"
#: Tensors of fewer elements stay inside their file.
_LARGE = 1024
#: Offsets inside the file of weights are multiples of this, so that it can be mapped.
_PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Kit:
    """What was written.

    Attributes:
        folder: The kit.
        networks: Networks in it.
        kernels: Single kernels in it.
        size_bytes: Of all files.
    """

    folder: Path
    networks: int
    kernels: int
    size_bytes: int


@runtime_checkable
class Laps(Protocol):
    """What draws the items of a kit, such as a :class:`~autoprune.measure.subjects.Sampler`."""

    def laps(self) -> Iterator[list[Draw]]:
        """Yield draws, of all sorts in each lap."""
        ...


def write_kit(sampler: Laps, folder: Path, *, networks: int) -> Kit:
    """Write a kit and return what is in it.

    Weights are random numbers that all files share: latency does not depend on them, and the kit
    stays small.

    Args:
        sampler: Draws what is measured.
        folder: Where the kit goes; must be empty or not there.
        networks: How many networks; each brings the sampler's number of kernels.

    Raises:
        MeasureError: The folder holds something, or a network cannot be exported.
    """
    if folder.exists() and any(folder.iterdir()):
        raise MeasureError(f"{folder} is not empty; choose another folder for the kit")
    (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    items: list[dict[str, Any]] = []
    layers: dict[str, Any] = {}
    models = {"reference": _emptied(reference()), "idle": _emptied(idle())}
    for number, draw in enumerate(_first(sampler, networks)):
        subject = draw.build()
        name = f"{number:03d}"
        models[name] = _emptied((subject.module, subject.inputs))
        item = {"name": subject.name, "kind": subject.kind, "file": _place(name)}
        items.append({**item, "columns": dict(subject.columns)})
        if subject.layers is not None:
            layers[subject.name] = subject.layers
    weights = _SharedWeights(models.values())
    for name, model in models.items():
        weights.refer(model)
        write_atomically(folder / _place(name), model.SerializeToString(deterministic=True))
    write_atomically(folder / _FOLDER / _WEIGHTS, weights.content())
    write_atomically(folder / LAYERS_FILE, json.dumps(layers) + "\n")
    write_atomically(folder / SCRIPT, Path(board.__file__).read_text(encoding="utf-8"))
    write_atomically(folder / README, _readme(folder.name))
    content = {
        "format": FORMAT,
        "version": VERSION,
        "autoprune": __version__,
        "chunk": _CHUNK,
        "reference": _place("reference"),
        "idle": _place("idle"),
        "items": items,
    }
    # Last: a folder with this file is whole.
    write_atomically(folder / KIT_FILE, json.dumps(content, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Kit(folder, len(layers), len(items) - len(layers), size)


def is_kit(folder: Path) -> bool:
    """Return whether a folder holds a whole kit of this version."""
    try:
        content = json.loads((folder / KIT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and (content.get("format"), content.get("version")) == (
        FORMAT,
        VERSION,
    )


def _first(sampler: Laps, networks: int) -> Iterator[Draw]:
    """Yield draws until there are so many networks, the kernels of the last included."""
    drawn = 0
    for lap in sampler.laps():
        for draw in lap:
            drawn += draw.kind == "network"
            if drawn > networks:
                return
            yield draw


def _place(name: str) -> str:
    """Return a model's path inside the kit."""
    return f"{_FOLDER}/{name}.onnx"


def _emptied(subject: tuple[nn.Module, tuple[Tensor, ...]]) -> onnx.ModelProto:
    """Return a module as ONNX, its large tensors without values."""
    model = onnx.load_from_string(onnx_bytes(*subject))
    for tensor in _large(model):
        for field in ("float_data", "raw_data"):
            tensor.ClearField(field)
    return model


def _large(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= _LARGE:
            yield tensor


class _SharedWeights:
    """A file of random numbers; tensors of alike fan-in all begin where their stretch begins.

    There is a stretch for each power of two of the fan-in, scaled so that activations neither fade
    nor explode: processors are slow on numbers that have all but faded.
    """

    def __init__(self, models: Iterable[onnx.ModelProto]) -> None:
        """Make every stretch as long as the largest tensor that uses it."""
        self._lengths: dict[int, int] = {}
        for tensor in (tensor for model in models for tensor in _large(model)):
            stretch = self._stretch(tensor)
            length = math.prod(tensor.dims)
            self._lengths[stretch] = max(length, self._lengths.get(stretch, 0))
        self._offsets: dict[int, int] = {}
        end = 0
        for stretch, length in sorted(self._lengths.items()):
            self._offsets[stretch] = end
            end += -(-4 * length // _PAGE) * _PAGE
        self._size = end

    def refer(self, model: onnx.ModelProto) -> None:
        """Let the large tensors of a model refer to the file."""
        for tensor in _large(model):
            offset, length = self._offsets[self._stretch(tensor)], 4 * math.prod(tensor.dims)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", _WEIGHTS), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))

    def content(self) -> bytes:
        """Return the file."""
        generator = np.random.default_rng(0)
        content = bytearray(self._size)
        for stretch, length in self._lengths.items():
            numbers = generator.standard_normal(length, np.float32) * math.sqrt(2 / 2**stretch)
            begin = self._offsets[stretch]
            content[begin : begin + 4 * length] = numbers.astype("<f4").tobytes()
        return bytes(content)

    @staticmethod
    def _stretch(tensor: onnx.TensorProto) -> int:
        """Return the logarithm of a tensor's fan-in."""
        return round(math.log2(max(1, math.prod(tensor.dims) // tensor.dims[0])))


def _readme(name: str) -> str:
    return f"""What measures a board for autoprune
===================================

Copy this folder ({name}) to the board, which needs Python 3.8 or newer and either onnxruntime
(pip install onnxruntime) or TensorRT with its program trtexec. Then:

1. On the board, in this folder; what there is, onnxruntime or trtexec, is found by itself:

       python3 {SCRIPT} --device myboard
       python3 {SCRIPT} --device myboard --runtime tensorrt --precision fp16

   A run that was stopped goes on where it stopped. `python3 {SCRIPT} --help` lists the options.

2. Copy the folder results/ back:

       scp -r user@board:{name}/results .

3. Fit the profile; RUNTIME is onnxruntime or tensorrt:

       autoprune calibrate results/{NETWORKS_FILE} --layers results/{LAYERS_FILE} \\
           --device myboard --runtime RUNTIME --precision fp32 -o myboard.yaml

   results/{KERNELS_FILE} holds single kernels; given as a second table they can lower the
   held-out error that is printed, or raise it where a runtime reorders tensors around each.

The weights are random: latency does not depend on them, accuracy would.
"""
