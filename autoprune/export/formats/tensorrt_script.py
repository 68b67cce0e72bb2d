"""Scripts that build a TensorRT engine on the board; nothing of TensorRT runs here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoprune.export.batches import arrays, batch_of, has_batch
from autoprune.export.format import FORMATS, Exportable, Exported, Format
from autoprune.export.int8 import FILES
from autoprune.export.onnx import ONNX_FILE, Flat
from autoprune.files import write_atomically
from autoprune.network.copies import deep_copy
from autoprune.network.inputs import normalised

COMMANDS_FILE, BUILDER_FILE, SAMPLES_FILE = "tensorrt.sh", "tensorrt_build.py", "samples.npz"


@FORMATS.register("tensorrt-script")
class TensorrtScript(Format):
    """Writes commands, a Python builder, and samples to compare the engine on."""

    name = "tensorrt-script"

    def write(self, subject: Exportable, folder: Path) -> Exported:
        """Write the scripts and the ONNX file they read; see :class:`Format`.

        The ONNX file is compared in ONNX Runtime. The engine is not built: TensorRT builds it for
        the device that it runs on.
        """
        content, check = subject.onnx
        write_atomically(folder / ONNX_FILE, content)
        network = Flat(deep_copy(subject.model).cpu(), normalised(subject.inputs)).eval()
        with torch.no_grad():
            outputs = arrays(network(*network.tensors))
        inputs = dict(zip(check.input_names, network.tensors, strict=True))
        archive = io.BytesIO()
        samples = {f"input:{name}": tensor.numpy() for name, tensor in inputs.items()}
        expected = dict(zip(check.output_names, outputs, strict=True))
        samples |= {f"output:{name}": array for name, array in expected.items()}
        np.savez(archive, **samples)
        write_atomically(folder / SAMPLES_FILE, archive.getvalue())
        shapes = _shapes(inputs, subject)
        write_atomically(folder / BUILDER_FILE, _BUILDER.replace("@SHAPES@", json.dumps(shapes)))
        write_atomically(folder / COMMANDS_FILE, _commands(shapes))
        return Exported(
            format=self.name,
            files=(COMMANDS_FILE, BUILDER_FILE, SAMPLES_FILE, ONNX_FILE),
            runtime=None,
            max_abs_difference=None,
            note="the engine was not built; run tensorrt.sh on the board",
        )


def _shapes(inputs: dict[str, Tensor], subject: Exportable) -> dict[str, list[list[int]]]:
    """Return the least, the usual and the largest shape of each input with an open batch."""
    if not subject.dynamic_batch:
        return {}
    batch, usual = batch_of(inputs.values()), subject.batch
    return {
        name: [[size, *tensor.shape[1:]] for size in (1, usual, max(batch, usual))]
        for name, tensor in inputs.items()
        if has_batch(tensor, batch)
    }


def _commands(shapes: dict[str, list[list[int]]]) -> str:
    """Return the shell script."""
    options = [
        f"--{word}Shapes="
        + ",".join(f"{name}:{'x'.join(map(str, of[i]))}" for name, of in shapes.items())
        for i, word in enumerate(("min", "opt", "max"))
        if shapes
    ]
    usual = " ".join(f"{name}:{json.dumps(of[1], separators=(',', ':'))}"
                     for name, of in shapes.items())  # fmt: skip
    inputs = f" --input-shapes {usual}" if usual else ""
    return (
        _COMMANDS.replace("@SHAPES@", " ".join(options))
        .replace("@INPUTS@", inputs)
        .replace("@INT8@", FILES["tensorrt"])
    )


_COMMANDS = """#!/bin/sh
# Builds TensorRT engines of network.onnx and times them. Run it on the board, in this folder: an
# engine runs only on the kind of GPU, and with the TensorRT version, that it was built with.
# autoprune wrote this file and has not run it.
set -eu

# JetPack has trtexec here, and not on the PATH.
PATH="$PATH:/usr/src/tensorrt/bin"

# The batch sizes that the engine accepts: least, the one it is tuned for, largest.
SHAPES="@SHAPES@"

# 1. Half precision. GPUs from Pascal on (Jetson TX2, Nano, Xavier, Orin) compute in it; drop
#    --fp16 for single precision.
trtexec --onnx=network.onnx --fp16 $SHAPES --saveEngine=network.fp16.engine

# 2. Time it: the median of "GPU Compute Time" is what autoprune's profiles predict.
trtexec --loadEngine=network.fp16.engine --iterations=200 --warmUp=500 --useSpinWait

# 3. 8 bits, from Xavier on (not TX2, not Nano): the file has scales inside, made by
#    `autoprune export ... --format tensorrt-script --int8` on calibration images.
if [ -f @INT8@ ]; then
    trtexec --onnx=@INT8@ --int8 --fp16 $SHAPES --saveEngine=network.int8.engine
fi

# 4. Compare TensorRT with ONNX Runtime, if polygraphy is there:
#        python3 -m pip install polygraphy onnxruntime
if command -v polygraphy > /dev/null; then
    polygraphy run network.onnx --trt --onnxrt --fp16@INPUTS@ --rtol 1e-2 --atol 1e-2
fi

# 5. Without trtexec: python3 tensorrt_build.py --fp16
"""

_BUILDER = '''"""Builds a TensorRT engine of network.onnx, and compares it with PyTorch's outputs.

    python3 tensorrt_build.py --fp16

Run it on the board. It needs the Python packages tensorrt (part of JetPack) and numpy; with torch
and CUDA there as well, the engine runs on samples.npz and is compared with what PyTorch computed.
autoprune wrote this file and has not run it.
"""

import argparse
import sys

import numpy as np
import tensorrt as trt

# Least, usual and largest shape of each input whose batch size is open.
SHAPES = @SHAPES@


def build(path, *, fp16, int8):
    """Return the serialised engine of an ONNX file."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 8 has to be told that the batch is a dimension; later versions know nothing else.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            sys.exit("TensorRT cannot read %s:\\n%s" % (path, "\\n".join(errors)))
    config = builder.create_builder_config()
    if fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    if int8:
        # The scales are in the file, so no calibrator is given.
        config.set_flag(trt.BuilderFlag.INT8)
    if SHAPES:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in SHAPES.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        sys.exit("TensorRT could not build an engine; its messages above say why")
    return engine


def compare(serialised):
    """Print how far the engine's outputs are from PyTorch's (TensorRT 8.5 or newer, and torch)."""
    try:
        import torch
    except ImportError:
        print("not compared: there is no torch")
        return
    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(serialised)
    context = engine.create_execution_context()
    samples = np.load("samples.npz")
    tensors = {}
    for key in samples.files:
        kind, name = key.split(":", 1)
        tensor = torch.from_numpy(samples[key]).cuda().contiguous()
        tensors[name] = tensor if kind == "input" else torch.zeros_like(tensor)
        if kind == "input" and name in SHAPES:
            context.set_input_shape(name, tuple(tensor.shape))
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()
    context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    for key in samples.files:
        kind, name = key.split(":", 1)
        if kind == "output":
            difference = np.abs(tensors[name].cpu().numpy() - samples[key]).max()
            print("%s: largest difference to PyTorch %.3g" % (name, difference))


def main():
    """Build, write and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--onnx", default="network.onnx")
    parser.add_argument("--output", default="network.engine")
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--int8", action="store_true", help="for network.int8.tensorrt.onnx")
    options = parser.parse_args()
    engine = build(options.onnx, fp16=options.fp16, int8=options.int8)
    with open(options.output, "wb") as file:
        file.write(engine)
    print("wrote", options.output)
    compare(engine)


if __name__ == "__main__":
    main()
'''
