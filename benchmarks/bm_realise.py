"""Accuracy of half-width CIFAR-10 ResNets without a gradient step, by criterion and realisation.

`AUTOPRUNE_SHARED=... python benchmarks/bm_realise.py` measures every cell that
`benchmarks/results/bm_realise.csv` does not hold yet, and writes `bm_realise.md` beside it. The
channels inside every residual block are halved, which for ResNet-56 is half of the MACs. Name
networks, criteria and realisations to measure a few cells only.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import RESULTS, write_result

from autoprune.network.network import Network
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.criterion import CRITERIA, build_criterion
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, build_realiser
from autoprune.tasks.base import classification_score
from autoprune.tasks.cifar10 import cifar10
from autoprune.tasks.classification import ClassificationTask

CELLS = RESULTS / "bm_realise.csv"
KEY = ["network", "criterion", "realise", "images", "tested"]
ORDER = ["slice", "statistics", "merge", "reconstruct"]


def main() -> None:
    """Measure the cells that are asked for and missing; write all."""
    options = _options()
    torch.set_num_threads(options.threads)
    data = Path(options.shared) / "bench_data"
    task = cifar10(str(data), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for depth in options.networks:
        _measure(depth, data, task, options)
    cells = pd.read_csv(CELLS)
    write_result(
        "bm_realise",
        _table(cells),
        command="python benchmarks/bm_realise.py",
        packages=["torch"],
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("AUTOPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--shared", default=default, help="folder that holds bench_data")
    parser.add_argument("--networks", nargs="+", type=int, default=[20, 56], metavar="DEPTH")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA.names())
    parser.add_argument("--realise", nargs="+", default=REALISERS.names())
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--tested", type=int, default=10_000, help="test images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="measure cells that are there too")
    return parser.parse_args()


def _measure(depth: int, data: Path, task: ClassificationTask, options: argparse.Namespace) -> None:
    """Measure the missing cells of one network."""
    name = f"ResNet-{depth}"
    wanted = [("dense", "dense")] + [(c, r) for c in options.criteria for r in options.realise]
    if not options.again:
        known = _known(name, options)
        wanted = [cell for cell in wanted if cell not in known]
    if not wanted:
        return
    model, _ = ModelSource.parse(
        f"{data / 'networks.py'}:cifar_resnet({depth})",
        weights=data / f"cifar10_resnet{depth}.safetensors",
    ).build_with_notes()
    network = trace(model, task.example_inputs())
    batches = task.calibration(options.images)
    if ("dense", "dense") in wanted:
        _store(name, "dense", "dense", options, _accuracy(model, task, options.tested), 0.0, 0.0)
    plans = {}
    for criterion in dict.fromkeys(c for c, _ in wanted if c != "dense"):
        scores = build_criterion(criterion).score(network, batches)
        plans[criterion] = _halved(network, scores)
    for realise in dict.fromkeys(r for _, r in wanted if r != "dense"):
        start = time.perf_counter()
        realiser = build_realiser(realise, network, batches)
        prepared = time.perf_counter() - start
        for criterion in [c for c, r in wanted if r == realise]:
            start = time.perf_counter()
            pruned = realiser(plans[criterion])
            seconds = time.perf_counter() - start
            accuracy = _accuracy(pruned, task, options.tested)
            _store(name, criterion, realise, options, accuracy, prepared, seconds)


def _halved(network: Network, scores: dict[str, np.ndarray]) -> PruningPlan:
    """Return the plan that keeps the better half of every group inside a block."""
    inner = [group for group in network.groups if group.name.endswith(".conv1")]
    return PruningPlan(
        {
            group.name: tuple(sorted(np.argsort(-scores[group.name], kind="stable")
                                     [: group.size // 2].tolist()))
            for group in inner
        }
    )  # fmt: skip


def _accuracy(model: torch.nn.Module, task: ClassificationTask, tested: int) -> float:
    split = task.test
    batches = (split.batch(start, min(start + 250, tested)) for start in range(0, tested, 250))
    batches = ((x.contiguous(memory_format=torch.channels_last), y) for x, y in batches)
    return classification_score(model, batches, classes=10).accuracy


def _known(name: str, options: argparse.Namespace) -> set[tuple[str, str]]:
    if not CELLS.is_file():
        return set()
    cells = pd.read_csv(CELLS)
    here = (cells["network"] == name) & (cells["images"] == options.images)
    here &= cells["tested"] == options.tested
    return set(zip(cells["criterion"][here], cells["realise"][here], strict=True))


def _store(
    name: str,
    criterion: str,
    realise: str,
    options: argparse.Namespace,
    accuracy: float,
    prepared: float,
    seconds: float,
) -> None:
    """Add a cell to the file, in place of an older one; print it."""
    new = pd.DataFrame(
        {
            "network": [name], "criterion": [criterion], "realise": [realise],
            "images": [options.images], "tested": [options.tested],
            "accuracy": [round(accuracy, 4)], "prepare_s": [round(prepared, 2)],
            "seconds": [round(seconds, 2)], "threads": [options.threads],
        }
    )  # fmt: skip
    cells = pd.concat([pd.read_csv(CELLS), new]) if CELLS.is_file() else new
    cells = cells.drop_duplicates(KEY, keep="last").sort_values(KEY)
    RESULTS.mkdir(exist_ok=True)
    cells.to_csv(CELLS, index=False, lineterminator="\n")
    print(f"{name} {criterion} {realise}: {accuracy:.4f}, {prepared:.1f} + {seconds:.1f} s")


def _table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network and criterion, a column per realisation: percent (seconds)."""
    most = cells["tested"] == cells.groupby("network")["tested"].transform("max")
    rows = []
    for (name, images, tested), part in cells[most].groupby(["network", "images", "tested"]):
        dense = part["accuracy"][part["criterion"] == "dense"]
        for criterion, found in part[part["criterion"] != "dense"].groupby("criterion"):
            of = found.set_index("realise")
            row = {
                "network": name,
                "calibration images": images,
                "test images": tested,
                "dense %": f"{100 * dense.iloc[0]:.2f}" if len(dense) else "",
                "criterion": criterion,
            }
            for realise in ORDER:
                row[f"{realise} % (s)"] = (
                    f"{100 * of['accuracy'][realise]:.2f} ({of['seconds'][realise]:.1f})"
                    if realise in of.index
                    else ""
                )
            rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
