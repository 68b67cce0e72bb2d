"""Calibrates the shipped profiles of six Jetson boards again, each with one command.

``AUTOPRUNE_SHARED=... python benchmarks/make_jetson_profiles.py FOLDER`` reads FOLDER/layers.json
and FOLDER/names.json (from make_jetson_layers.py) and the shared folder's Jetson table, and writes
hardware_profiles/*.yaml. Run it in the repository's root: the paths go into the profiles.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from autoprune.cli.calibrate import calibrate

TABLE = "device_data/net_jetson_small.csv"
NOTE = (
    "FOLDER/layers.json and FOLDER/names.json come from\n"
    "  python benchmarks/make_jetson_layers.py FOLDER"
)

_TENSOR_CORES: dict[str, Any] = {"alignment": 8, "capability": ["tensor_cores", "int8"]}
#: Boards whose half-precision units work on pairs of channels.
_PAIRS: dict[str, Any] = {"alignment": 2}

BOARDS: dict[str, dict[str, Any]] = {
    "jetson_nano": {"title": "NVIDIA Jetson Nano", "alias": ["jetson"], **_PAIRS},
    "jetson_tx2": {
        "title": "NVIDIA Jetson TX2",
        "note": "The rows of 2018 are not used: that TensorRT no longer describes the board.",
        "table_runtime": ["tensorrt_JetPack4.6"],
        **_PAIRS,
    },
    "jetson_nx": {
        "title": "NVIDIA Jetson Xavier NX",
        "alias": ["jetson_xavier_nx"],
        **_TENSOR_CORES,
    },
    "jetson_agx_xavier": {
        "title": "NVIDIA Jetson AGX Xavier",
        "note": "The rows of 2019 show DenseNets whose shared features are copied into every\n"
        "concatenation (rules tensorrt_early); the profile predicts today's TensorRT, without.",
        "alias": ["jetson_xavier"],
        "table_device": ["jetson_agx_xavier", "jetson_xavier"],
        "table_runtime": ["tensorrt=tensorrt_early", "tensorrt_JetPack4.6"],
        **_TENSOR_CORES,
    },
    "jetson_orin_nano": {
        "title": "NVIDIA Jetson Orin Nano",
        "alignment": 8,
        "capability": ["tensor_cores", "int8", "sparsity_2_4"],
    },
    "jetson_agx_orin": {
        "title": "NVIDIA Jetson AGX Orin",
        "alignment": 8,
        "capability": ["tensor_cores", "int8", "sparsity_2_4"],
    },
}


def main() -> None:
    """Read the folder from the command line and write all profiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where layers.json and names.json are")
    folder = parser.parse_args().folder
    shared = Path(os.environ["AUTOPRUNE_SHARED"])
    for name, options in BOARDS.items():
        calibrate(
            [shared / TABLE],
            layers=[folder / "layers.json"],
            names=folder / "names.json",
            device=name,
            output=Path("hardware_profiles") / f"{name}.yaml",
            note="\n".join(
                filter(None, [options.get("note"), NOTE.replace("FOLDER", folder.as_posix())])
            ),
            **{key: value for key, value in options.items() if key != "note"},
        )


if __name__ == "__main__":
    main()
