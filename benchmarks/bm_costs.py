"""What realising candidates costs: preparation, milliseconds per candidate, peak memory.

`python benchmarks/bm_costs.py` measures every network with every realisation, each in a process of
its own, and writes `benchmarks/results/bm_costs.md`. Half of the channels between the layers of
every block go. The second candidate differs from the first in two groups, drawn at random; the
third is the first again, so that all that can be looked up is. Weights are random: costs do not
depend on them. Seconds are those of the processor, summed over threads, because other programs may
run beside.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import RESULTS, write_result

from autoprune.network.network import Network
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.pruning.criterion import Batches
from autoprune.pruning.merge import Calibrated
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.realiser import REALISERS, build_realiser
from autoprune.pruning.verify import verified
from autoprune.testing.plans import half_of

#: Where a network comes from, its images, and the side of an image.
NETWORKS = {
    "ResNet-56": ("{shared}/bench_data/networks.py:cifar_resnet(56)", 512, 32),
    "ResNet-50": ("torchvision:resnet50", 256, 224),
    "MobileNetV2": ("torchvision:mobilenet_v2", 256, 224),
    "ViT-S": ("timm:vit_small_patch16_224", 256, 224),
}

ORDER = ["slice", "statistics", "merge", "reconstruct"]
CELLS = RESULTS / "bm_costs.csv"


def main() -> None:
    """Measure the cells that are asked for, each in a process of its own; write all."""
    options = _options()
    if options.cell:
        print(json.dumps(_measured(options)))
        return
    for name in options.networks:
        for realise in [*options.realise, "obs"]:
            _store(name, realise, _in_process(name, realise, options))
    cells = pd.read_csv(CELLS)
    write_result("bm_costs", _table(cells), command=_COMMAND, packages=["torch"])


_COMMAND = "python benchmarks/bm_costs.py"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--shared", default=default, help="folder that holds bench_data")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--realise", nargs="+", default=REALISERS.names())
    parser.add_argument("--images", type=int, help="calibration images in place of the defaults")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_process(name: str, realise: str, options: argparse.Namespace) -> dict[str, float]:
    """Return what a new process measures of one network with one realisation."""
    command = [sys.executable, __file__, "--cell", name, realise]
    command += ["--shared", str(options.shared), "--threads", str(options.threads)]
    command += ["--images", str(options.images or NETWORKS[name][1])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(name, realise, measured, flush=True)
    return measured


def _measured(options: argparse.Namespace) -> dict[str, float]:
    """Measure one network with one realisation in this process."""
    name, realise = options.cell
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    source, _, side = NETWORKS[name]
    network = _network(source.format(shared=options.shared), side)
    images = torch.randn(options.images, 3, side, side)
    batches = [(images, torch.zeros(options.images, dtype=torch.long))]
    before = _peak_mb()
    found = {"images": options.images, "threads": options.threads}
    found |= _eliminated(network, batches) if realise == "obs" else _realised(
        network, batches, realise
    )  # fmt: skip
    return found | {"network_mb": round(before), "peak_mb": round(_peak_mb())}


def _network(source: str, side: int) -> Network:
    """Return a traced network with random weights whose BatchNorm layers fit their inputs."""
    spec = ModelSource.parse(source)
    model = spec.build() if spec.kind == "file" else _untrained(source)
    model = model.to(memory_format=torch.channels_last)
    return verified(trace(model, torch.randn(2, 3, side, side)))


def _untrained(source: str) -> torch.nn.Module:
    """Return a model of a library without its weights."""
    kind, _, name = source.partition(":")
    from autoprune.network.vision import load_torchvision

    torchvision = load_torchvision()
    if kind == "torchvision":
        model: torch.nn.Module = torchvision.models.get_model(name, weights=None)
        return model
    import timm

    created: torch.nn.Module = timm.create_model(name, pretrained=False)
    return created


def _realised(network: Network, batches: Batches, realise: str) -> dict[str, float]:
    """Return the seconds of preparation and of three candidates."""
    plan = _plan(network)
    found: dict[str, float] = {"groups": len(plan.kept)}
    realiser = None

    def prepare() -> None:
        nonlocal realiser
        realiser = build_realiser(realise, network, batches)

    found["prepare_s"] = _cpu_seconds(prepare)
    assert realiser is not None
    for moment, candidate in (("cold", plan), ("neighbour", _neighbour(plan)), ("same", plan)):
        seconds = _cpu_seconds(lambda candidate=candidate: realiser(candidate))
        found[f"{moment}_ms"] = 1000 * seconds
    return found


def _eliminated(network: Network, batches: Batches) -> dict[str, float]:
    """Return the seconds of the Gram pass and of all eliminations."""
    calibrated = None

    def measure() -> None:
        nonlocal calibrated
        calibrated = Calibrated.of(network, batches)

    found = {"prepare_s": _cpu_seconds(measure)}
    assert calibrated is not None
    groups = [group for group in network.groups if group.name in _plan(network).kept]
    found["cold_ms"] = 1000 * _cpu_seconds(lambda: [calibrated.elimination(g) for g in groups])
    return found | {"groups": len(groups)}


def _plan(network: Network) -> PruningPlan:
    """Return the plan that halves every group that only two layers share: inside blocks."""
    weights = {name for name, p in network.model.named_parameters() if p.ndim > 1}
    inner = [
        group
        for group in network.groups
        if len({member.path for member in group.members if member.path in weights}) <= 3
    ]
    return PruningPlan({group.name: half_of(group) for group in inner})


def _neighbour(plan: PruningPlan) -> PruningPlan:
    """Return a plan in which two groups, drawn at random, keep fewer."""
    kept = dict(plan.kept)
    for name in np.random.default_rng(0).choice(sorted(kept), 2, replace=False):
        kept[name] = kept[name][: max(1, len(kept[name]) // 2)]
    return PruningPlan(kept)


def _cpu_seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def _peak_mb() -> float:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _store(name: str, realise: str, measured: dict[str, float]) -> None:
    """Put a cell in the file, in place of an older one."""
    new = pd.DataFrame([{"network": name, "realise": realise, **measured}])
    cells = pd.concat([pd.read_csv(CELLS), new]) if CELLS.is_file() else new
    cells = cells.drop_duplicates(["network", "realise"], keep="last")
    RESULTS.mkdir(exist_ok=True)
    cells.round(2).to_csv(CELLS, index=False, lineterminator="\n")


def _table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row per network and realisation."""
    rows = []
    for name in NETWORKS:
        of = cells[cells["network"] == name].set_index("realise")
        for realise in [each for each in [*ORDER, "obs"] if each in of.index]:
            cell = of.loc[realise]
            first = "moments, then elimination (obs)" if realise == "obs" else realise
            rows.append(
                {
                    "network": name,
                    "images": int(cell["images"]),
                    "groups cut": int(cell["groups"]),
                    "what": first,
                    "prepare, CPU s": f"{cell['prepare_s']:.1f}",
                    "first, CPU ms": _milliseconds(cell["cold_ms"]),
                    "two groups changed": _milliseconds(cell.get("neighbour_ms")),
                    "same again": _milliseconds(cell.get("same_ms")),
                    "peak MB (with network)": f"{cell['peak_mb']:.0f}",
                    "MB before": f"{cell['network_mb']:.0f}",
                }
            )
    return pd.DataFrame(rows)


def _milliseconds(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.0f}"


if __name__ == "__main__":
    main()
