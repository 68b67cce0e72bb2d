"""What can be pruned of every network people use, beside torch-pruning on the same machine.

`python benchmarks/coverage.py` takes one small model of every module of `timm.models` and one of
every family of torchvision's classifiers, each in a process of its own with a time limit, and
writes `docs/coverage.md`. With models named (`timm:vit_tiny_patch16_224 ...`) it prints their rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from torch import nn

from autoprune.errors import AutopruneError
from autoprune.network.network import Network
from autoprune.network.source import ModelSource
from autoprune.network.trace import trace
from autoprune.network.vision import load_torchvision, timm_names
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon, replay
from autoprune.pruning.verify import verified

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
OUR_SECONDS, THEIR_SECONDS = 240, 120
LIMIT_BYTES = 9 * 2**30
COLUMNS = {
    "model": "model",
    "forward": "forward s",
    "trace": "trace s",
    "verify": "trial cuts s",
    "groups": "groups",
    "blocks": "blocks",
    "macs": "MACs prunable",
    "half": "runs at 50 %",
    "random": "runs at random (of 5)",
    "reload": "reload equal",
    "unsupported": "operators without a rule",
    "theirs": "torch-pruning at 50 % (with --peer)",
    "error": "error",
}
_SMALL = ("atto", "femto", "pico", "nano", "tiny", "xxs", "_xs", "small", "_s", "18", "26", "b0")


def main() -> None:
    """Measure what was named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--processes", type=int, default=1, help="more disturb each other's times")
    parser.add_argument("--peer", action="store_true", help="run torch-pruning as well")
    parser.add_argument("--one", choices=["ours", "theirs"], help="internal: one row as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.one:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        torch.set_num_threads(1)
        measure = measured if arguments.one == "ours" else torch_pruning_row
        print(json.dumps(measure(arguments.models[0])))
        return

    def row_of(spec: str) -> dict[str, Any]:
        row = in_own_process(spec, "ours", OUR_SECONDS)
        if arguments.peer:
            theirs = in_own_process(spec, "theirs", THEIR_SECONDS)
            row["theirs"] = theirs.get("theirs", theirs.get("error"))
        return row

    specs = arguments.models or [*torchvision_specs(), *timm_specs()]
    rows = []
    with ThreadPoolExecutor(arguments.processes) as pool:
        for row in pool.map(row_of, specs):
            rows.append(row)
            print("  ".join(f"{key} {row.get(key, '')}" for key in COLUMNS), flush=True)
    if not arguments.models:
        write_page(rows, arguments.processes)


def in_own_process(spec: str, whose: str, limit_s: int) -> dict[str, Any]:
    """Return the row of one model, or why there is none."""
    command = [sys.executable, __file__, "--one", whose, spec]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"model": spec, "error": f"more than {limit_s} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"model": spec, "error": lines[-1][:160]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measured(spec: str) -> dict[str, Any]:
    """Return the row of one model."""
    model, x = _model_and_input(spec)
    row: dict[str, Any] = {"model": spec}
    with torch.no_grad():
        row["forward"] = _seconds(lambda: model(x))
    started = time.perf_counter()
    traced = trace(model, x)
    row["trace"] = round(time.perf_counter() - started, 2)
    started = time.perf_counter()
    network = verified(traced)
    row["verify"] = round(time.perf_counter() - started, 2)
    row["groups"] = f"{len(network.groups)} of {len(traced.groups)}"
    row["blocks"] = f"{len(network.blocks)} of {len(traced.blocks)}"
    row["macs"] = f"{100 * network.ops.prunable_shares()[0]:.0f} %"
    row["unsupported"] = ", ".join(sorted(network.unsupported))
    row |= _candidates(network, ModelSource.parse(spec), x)
    return row


def _model_and_input(spec: str) -> tuple[nn.Module, torch.Tensor]:
    model = ModelSource.parse(spec).build()
    size = (getattr(model, "default_cfg", None) or {}).get("input_size", (3, 224, 224))
    return model, torch.randn((1, *size), generator=torch.Generator().manual_seed(0))


def _candidates(network: Network, source: ModelSource, x: torch.Tensor) -> dict[str, str]:
    surgeon, rng = Surgeon(network), np.random.default_rng(0)
    half = PruningPlan({g.name: tuple(range(0, g.size, 2)) for g in network.groups})
    pruned = surgeon.cut(half).eval()
    again = replay(source.build(), (x,), surgeon.complete(half)).eval()
    again.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        outputs = [torch.utils._pytree.tree_leaves(net(x))[0] for net in (pruned, again)]
    runs = 0
    for _ in range(5):
        kept = {g.name: tuple(np.flatnonzero(_some(rng, g.size)).tolist()) for g in network.groups}
        with torch.no_grad():
            surgeon.cut(PruningPlan(kept)).eval()(x)
        runs += 1
    left = int(network.ops.macs(np.array([[(g.size + 1) // 2 for g in network.groups]]))[0])
    share = left / int(network.ops.macs()[0])
    return {
        "half": f"yes, {100 * share:.0f} % of the MACs left",
        "random": str(runs),
        "reload": "yes" if torch.equal(*outputs) else "no",
    }


def _some(rng: np.random.Generator, size: int) -> np.ndarray[Any, Any]:
    keep: np.ndarray[Any, Any] = rng.random(size) < rng.uniform(0.2, 1)
    keep[rng.integers(size)] = True
    return keep


def torch_pruning_row(spec: str) -> dict[str, str]:
    """Return how torch-pruning fares with half of every channel."""
    import torch_pruning

    model, x = _model_and_input(spec)
    classes = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    try:
        before, _ = torch_pruning.utils.count_ops_and_params(model, x)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=classes,
        )
        pruner.step()
        after, _ = torch_pruning.utils.count_ops_and_params(model, x)
    except Exception as error:  # noqa: BLE001 - whatever it raises is its result
        return {"theirs": type(error).__name__}
    return {"theirs": f"yes, {100 * after / before:.0f} % of the MACs left"}


def _seconds(action: Callable[[], object]) -> float:
    action()
    started = time.perf_counter()
    action()
    return round(time.perf_counter() - started, 2)


def torchvision_specs() -> list[str]:
    """Return the smallest member of every family of torchvision's classifiers, by name."""
    load_torchvision()
    names = (
        "alexnet vgg11 vgg11_bn resnet18 resnext50_32x4d wide_resnet50_2 densenet121 googlenet "
        "inception_v3 squeezenet1_1 mobilenet_v2 mobilenet_v3_small mnasnet0_5 efficientnet_b0 "
        "efficientnet_v2_s regnet_x_400mf regnet_y_400mf shufflenet_v2_x0_5 convnext_tiny "
        "vit_b_16 swin_t swin_v2_t maxvit_t"
    )
    return [f"torchvision:{name}" for name in names.split()]


def timm_specs() -> list[str]:
    """Return one small model of every module of ``timm.models``."""
    timm_names()
    from timm.models import _registry

    specs = []
    for module in sorted(_registry._module_to_models):
        names = sorted(_registry._module_to_models[module])
        hinted = [n for hint in _SMALL for n in names if hint in n]
        shortlist = list(dict.fromkeys([*hinted[:4], *names[:2]]))
        specs.append(f"timm:{min(shortlist, key=_size)}")
    return specs


def _size(name: str) -> float:
    try:
        with torch.device("meta"):
            model = ModelSource.parse(f"timm:{name}").build()
    except (AutopruneError, RuntimeError, NotImplementedError):
        return float("inf")
    return sum(parameter.numel() for parameter in model.parameters())


def write_page(rows: list[dict[str, Any]], processes: int) -> None:
    """Write the table."""
    lines = [
        "# Coverage",
        "",
        f"`python benchmarks/coverage.py`, {time.strftime('%Y-%m-%d')}; {machine()}; "
        f"torch {torch.__version__}. Each model in its own process with one thread, {processes} at",
        f"a time, at most {OUR_SECONDS} s (torch-pruning {THEIR_SECONDS} s) and "
        f"{LIMIT_BYTES // 2**30} GiB of address space.",
        "",
        "Every group counted was cut for real: cutting equals zeroing to 1e-4 where no",
        "normalisation mixes the channels. MACs prunable: what goes when every group is cut to one",
        "unit.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in COLUMNS) + " |" for row in rows]
    failed = sum("error" in row for row in rows)
    lines += ["", f"{len(rows)} models, {failed} without a result.", ""]
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
