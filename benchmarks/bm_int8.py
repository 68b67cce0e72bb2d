"""What 8 bits gain in ONNX Runtime, with unsigned and with signed activations.

`AUTOPRUNE_SHARED=... python benchmarks/bm_int8.py` quantises the unpruned ResNet-56 and MobileNetV2
as `autoprune export --int8` does for ONNX Runtime (unsigned activations) and for TensorRT (signed
ones), and times both beside the network in fp32, all in the same interleaved rounds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import onnx
import pandas as pd
import torch
from bm_verify import NETWORKS
from common import write_result
from realise_subjects import load_subject

from autoprune.export.int8 import quantised
from autoprune.measure.board import Rounds, interleaved, onnx_timer, pinned
from autoprune.measure.onnx_file import onnx_bytes
from autoprune.measure.subjects import reference

#: Images that the ranges of activations are found on.
CALIBRATION = 4


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = [_row(name) for name in NETWORKS]
    page = write_result(
        "bm_int8",
        pd.DataFrame(rows),
        command="python benchmarks/bm_int8.py",
        packages=["torch", "onnxruntime"],
    )
    note = (
        "Milliseconds for one image on one thread, by the thread's own clock; the median of "
        "interleaved rounds, with the spread of a fixed kernel between them. Load average "
        f"{load:.1f} before measuring."
    )
    page.write_text(f"{page.read_text()}\n{note}\n")
    print(note)


def _row(name: str) -> dict[str, str]:
    subject = load_subject(name)
    content = onnx_bytes(subject.model, subject.task.example_inputs(), opset=17)
    entry = onnx.load_from_string(content).graph.input[0].name
    images, _ = subject.task.calibration(CALIBRATION)[0]
    feeds = [{entry: image[None].numpy()} for image in images]
    kinds = {
        "fp32": content,
        "int8, unsigned": quantised(content, feeds, target="onnxruntime"),
        "int8, signed": quantised(content, feeds, target="tensorrt"),
    }
    options = {"provider": "CPUExecutionProvider", "threads": 1, "clock": "cpu"}
    with pinned(1):
        timers = {kind: onnx_timer(model, **options) for kind, model in kinds.items()}
        steady = onnx_timer(onnx_bytes(*reference()), **options)
        found = interleaved(timers, steady, Rounds(count=9, most=19))
    timed = {kind: found.items[kind].latency_ms for kind in kinds}
    return {
        "network": name,
        **{f"{kind} ms": f"{ms:.3f}" for kind, ms in timed.items()},
        "fp32 / unsigned": f"{timed['fp32'] / timed['int8, unsigned']:.2f}",
        "fp32 / signed": f"{timed['fp32'] / timed['int8, signed']:.2f}",
        "spread %": f"{100 * _spread(found.reference_ms):.0f}",
    }


def _spread(times: Sequence[float]) -> float:
    """Return the interquartile range over the median."""
    low, middle, high = np.percentile(times, [25, 50, 75])
    return float((high - low) / middle)


if __name__ == "__main__":
    main()
