"""Published measurements in the shared folder, as the neutral tables of docs/formats.md.

``AUTOPRUNE_SHARED=... python benchmarks/shared_tables.py FOLDER`` writes them to FOLDER for
``autoprune calibrate``: ``v100.parquet``, ``gemm.parquet``, ``neusight.parquet`` (kernels);
``xeon_blocks.csv`` and ``nb201.csv`` with their layer lists (networks). Simulated columns and
columns in whole milliseconds are left out.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

Rows: TypeAlias = list[list[Any]]

#: Measured columns of the NAS-Bench-201 table at batch 1, with runtime.
NB201 = {"raspi4": "tflite", "pixel3": "tflite", "gold_6226": "pytorch", "1080ti_1": "pytorch"}


def folder() -> Path:
    """Return the folder of published measurements."""
    shared = os.environ.get("AUTOPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared")
    return Path(shared) / "device_data"


def v100() -> pd.DataFrame:
    """Return convolutions on a V100 under TensorRT, of three precisions."""
    frame = pd.read_parquet(folder() / "op_conv_v100_tensorrt.parquet")
    op = np.where(frame["op"] == "Depthwise", "dwconv", "conv")
    return (
        frame.assign(op=op, adds=frame["fused"])
        .drop(columns="fused")
        .assign(
            repo="alibaba/lightweight-neural-architecture-search",
            path="op_conv_v100_tensorrt",
            commit="8ccaf889",
            licence="Apache-2.0",
        )
    )


def gemm() -> pd.DataFrame:
    """Return matrix products on A100, L40S, H100 and H200 under TensorRT-LLM or SGLang."""
    frame = pd.read_parquet(folder() / "op_gemm_gpu_aiconfigurator.parquet")
    names = {"bfloat16": "bf16"}
    return frame.drop(columns="kernel_source").assign(
        op="gemm",
        batch=1,
        precision=frame["precision"].map(lambda name: names.get(name, name)),
        repo="ai-dynamo/aiconfigurator",
        path="op_gemm_gpu_aiconfigurator",
        commit="095f58a5",
        licence="Apache-2.0",
    )


def neusight() -> pd.DataFrame:
    """Return convolutions and linears with random channels on eight GPUs under PyTorch."""
    source = {"repo": "sitar-lab/NeuSight", "commit": "6945927d", "licence": "MIT"}
    convolutions = pd.read_parquet(folder() / "op_conv_gpu_neusight.parquet")
    linears = pd.read_parquet(folder() / "op_linear_gpu_neusight.parquet")
    return pd.concat(
        [
            convolutions.drop(columns="padding").assign(path="op_conv_gpu_neusight"),
            linears.assign(op="gemm", path="op_linear_gpu_neusight"),
        ],
        ignore_index=True,
    ).assign(**source)


def xeon_blocks() -> tuple[pd.DataFrame, dict[str, Rows]]:
    """Return inverted-residual blocks on one thread of a Xeon, and their layer lists."""
    frame = pd.read_csv(folder() / "block_mbconv_tfnas_xeon.csv")
    layers: dict[str, Rows] = {}
    names = []
    for row in frame.itertuples():
        name = (
            f"{row.cin}-{row.cmid}-{row.cout} k{row.kernel} s{row.stride} {row.h}px "
            f"{row.act} se{row.se_mid}"
        )
        names.append(name)
        layers[name] = _block(row)
    table = frame[["device", "runtime", "precision", "batch", "latency_ms", "cmid"]].assign(
        network=names,
        repo="AberHu/TF-NAS",
        path="block_mbconv_tfnas_xeon",
        commit="08b31a2e",
        licence="MIT",
    )
    return table, layers


def nb201(column: str = "raspi4") -> tuple[pd.DataFrame, dict[str, Rows]]:
    """Return NAS-Bench-201 networks on one device, and their layer lists.

    Left out are cells with an operator that gets nothing or whose output nobody reads: whether the
    converter removed it is not published, and the measurements show both.
    """
    frame = pd.read_parquet(folder() / "net_nb201_help.parquet")
    frame = frame[[_is_plain(text) for text in frame["arch_str"]]]
    table = pd.DataFrame(
        {
            "device": column,
            "runtime": NB201[column],
            "precision": "fp32",
            "batch": 1,
            "network": frame["arch_str"],
            "latency_ms": frame[column],
            "repo": "HayeonLee/HELP",
            "path": "net_nb201_help",
            "commit": "45f70eb9",
            "licence": "MIT",
        }
    )
    return table.reset_index(drop=True), {text: _cells(text) for text in frame["arch_str"]}


def _block(row: Any) -> Rows:
    """Return an inverted-residual block, each row with the rows it reads."""
    rows: Rows = []

    def add(
        op: str, cin: int, cout: int, *, k: int = 1, s: int = 1, h: int, inputs: Sequence[int]
    ) -> int:
        groups = cin if op == "dwconv" else 1
        size = [h, h, -(-h // s), -(-h // s)] if op != "globalpool" else [h, h, 1, 1]
        rows.append([op, cin, cout, k, s, groups, *size, list(inputs)])
        return len(rows) - 1

    middle, out = row.cmid, -(-row.h // row.stride)
    source: list[int] = []
    # Where the middle is as wide as the input, nothing is expanded; the times drop by half there.
    if middle != row.cin:
        source = [add("conv", row.cin, middle, h=row.h, inputs=[])]
        source = [add("bn", middle, middle, h=row.h, inputs=source)]
        source = [add(row.act, middle, middle, h=row.h, inputs=source)]
    last = add("dwconv", middle, middle, k=row.kernel, s=row.stride, h=row.h, inputs=source)
    last = add("bn", middle, middle, h=out, inputs=[last])
    last = wide = add(row.act, middle, middle, h=out, inputs=[last])
    if row.se_mid:
        last = add("globalpool", middle, middle, k=out, h=out, inputs=[last])
        last = add("conv", middle, row.se_mid, h=1, inputs=[last])
        last = add(row.act, row.se_mid, row.se_mid, h=1, inputs=[last])
        last = add("conv", row.se_mid, middle, h=1, inputs=[last])
        last = add("sigmoid", middle, middle, h=1, inputs=[last])
        last = add("mul", middle, middle, h=out, inputs=[wide, last])
    last = add("conv", middle, row.cout, h=out, inputs=[last])
    last = add("bn", row.cout, row.cout, h=out, inputs=[last])
    if row.stride == 1 and row.cin == row.cout:
        # The block's own input is the second operand, and no row wrote it.
        add("add", row.cout, row.cout, h=out, inputs=[last])
    return rows


def _edges(text: str) -> list[tuple[int, int, str]]:
    """Return ``(node, its input, operator)`` of a NAS-Bench-201 cell."""
    return [
        (node, int(part.split("~")[1]), part.split("~")[0])
        for node, parts in enumerate(text.split("+"), 1)
        for part in parts.strip("|").split("|")
    ]


def _is_plain(text: str) -> bool:
    """Return whether every operator of a cell lies between its input and its output."""
    edges = [edge for edge in _edges(text) if edge[2] != "none"]
    reached, needed = {0}, {3}
    for node, source, _ in edges:
        if source in reached:
            reached.add(node)
    for node, source, _ in reversed(edges):
        if node in needed:
            needed.add(source)
    return 3 in reached and all(s in reached and n in needed for n, s, _ in edges)


def _cells(text: str) -> Rows:
    """Return the network of fifteen cells and two reductions on 32 x 32 pixels."""
    rows: Rows = []

    def add(op: str, cin: int, cout: int, h: int, inputs: list[int], k: int = 1, s: int = 1) -> int:
        out = -(-h // s) if op != "globalpool" else 1
        rows.append([op, cin, cout, k, s, 1, h, h, out, out, inputs])
        return len(rows) - 1

    def unit(cin: int, cout: int, h: int, source: int, k: int, s: int = 1) -> int:
        last = add("relu", cin, cin, h, [source])
        last = add("conv", cin, cout, h, [last], k, s)
        return add("bn", cout, cout, -(-h // s), [last])

    last = add("bn", 16, 16, 32, [add("conv", 3, 16, 32, [], 3)])
    channels, size = 16, 32
    for stage in range(3):
        if stage:
            short = add("avgpool", channels, channels, size, [last], 2, 2)
            short = add("conv", channels, 2 * channels, size // 2, [short])
            last = unit(channels, 2 * channels, size, last, 3, 2)
            channels, size = 2 * channels, size // 2
            last = add(
                "add", channels, channels, size, [unit(channels, channels, size, last, 3), short]
            )
        for _ in range(5):
            last = _cell(text, last, channels, size, add, unit)
    last = add("relu", channels, channels, size, [add("bn", channels, channels, size, [last])])
    last = add("globalpool", channels, channels, size, [last], size)
    add("fc", channels, 10, 1, [last])
    return rows


def _cell(
    text: str,
    source: int,
    channels: int,
    size: int,
    add: Callable[..., int],
    unit: Callable[..., int],
) -> int:
    """Add one cell to the rows and return the row of its output."""
    values = {0: source}
    for node, origin, op in _edges(text):
        if op == "none":
            continue
        value = values[origin]
        if op.startswith("nor_conv"):
            value = unit(channels, channels, size, value, int(op[-1]))
        elif op.startswith("avg_pool"):
            value = add("avgpool", channels, channels, size, [value], 3)
        if node in values:
            value = add("add", channels, channels, size, [values[node], value])
        values[node] = value
    return values[3]


def main() -> None:
    """Write all tables to the folder on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in (("v100", v100()), ("gemm", gemm()), ("neusight", neusight())):
        frame.to_parquet(out / f"{name}.parquet", index=False)
    for name, (frame, layers) in (("xeon_blocks", xeon_blocks()), ("nb201", nb201())):
        frame.to_csv(out / f"{name}.csv", index=False)
        (out / f"{name}_layers.json").write_text(json.dumps(layers))


if __name__ == "__main__":
    main()
