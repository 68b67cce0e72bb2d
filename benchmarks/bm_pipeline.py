"""Medians of what a search does per network and per candidate, beside torch-pruning.

`python benchmarks/bm_pipeline.py` prints and writes `benchmarks/results/bm_pipeline.md`.
torch-pruning is asked for the same thing in its own way: for every candidate it needs a copy of the
model, its dependency graph, its importance and its surgery.
"""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
import torch_pruning
from common import median_seconds, write_result
from torch import nn

from autoprune.evaluation import Evaluation
from autoprune.execution import tune
from autoprune.execution.driver import Limits, StudyDriver
from autoprune.latency.predict import predictor_for
from autoprune.latency.profile import load_profile
from autoprune.network.resnet import SmallResNet
from autoprune.network.trace import trace
from autoprune.network.vision import build_torchvision
from autoprune.pruning.criterion import build_criterion
from autoprune.pruning.plan import PruningPlan
from autoprune.pruning.surgery import Surgeon
from autoprune.pruning.verify import verified
from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.settings import load_space_settings
from autoprune.strategy.space import Candidate, build_space


def main() -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    resnet56, resnet50 = SmallResNet(56).eval(), build_torchvision("resnet50").eval()
    small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 224, 224)
    rows = [
        _trace("ResNet-56, 32x32", resnet56, small),
        _trace("ResNet-50, 224x224", resnet50, large),
        _candidate("ResNet-56, inner channels halved", resnet56, small),
        _predictions(resnet50, large),
        _tune_overhead(),
    ]
    frame = pd.DataFrame(rows, columns=["what", "autoprune", "torch-pruning", "target"])
    write_result(
        "bm_pipeline",
        frame,
        command="python benchmarks/bm_pipeline.py",
        packages=["torch", "torch-pruning", "optuna", "ray"],
    )


def _trace(name: str, model: nn.Module, x: torch.Tensor) -> tuple[str, str, str, str]:
    ours = median_seconds(lambda: trace(model, (x,)), repeats=5)
    checked = median_seconds(lambda: verified(trace(model, (x,))), repeats=3)
    theirs = median_seconds(
        lambda: torch_pruning.DependencyGraph().build_dependency(model, x), repeats=5
    )
    return (
        f"trace {name} (with every group cut and compared)",
        f"{ours * 1e3:.0f} ms ({checked * 1e3:.0f} ms)",
        f"{theirs * 1e3:.0f} ms (no check)",
        "",
    )


def _candidate(name: str, model: nn.Module, x: torch.Tensor) -> tuple[str, str, str, str]:
    network = verified(trace(model, (x,)))
    inner = [group for group in network.groups if group.name.endswith(".conv1")]
    scores = build_criterion("l2").score(network, [])
    surgeon = Surgeon(network)

    def ours() -> nn.Module:
        kept = {
            group.name: tuple(np.sort(np.argsort(scores[group.name])[group.size // 2 :]).tolist())
            for group in inner
        }
        return surgeon.cut(PruningPlan(kept))

    def theirs() -> nn.Module:
        twin = copy.deepcopy(model)
        layers = [twin.get_submodule(group.name) for group in inner]
        ratios = {layer: 0.5 for layer in layers}
        others = [
            layer
            for layer in twin.modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer not in ratios
        ]
        pruner = torch_pruning.pruner.MagnitudePruner(
            twin,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=others,
        )
        pruner.step()
        return twin

    sizes = {sum(p.numel() for p in build().parameters()) for build in (ours, theirs)}
    assert len(sizes) == 1, f"the two cut different networks: {sizes} parameters"
    return (
        f"candidate to runnable network, {name}",
        f"{median_seconds(ours, repeats=50) * 1e3:.1f} ms",
        f"{median_seconds(theirs, repeats=7) * 1e3:.0f} ms",
        "<= 5 ms",
    )


def _predictions(model: nn.Module, x: torch.Tensor) -> tuple[str, str, str, str]:
    network = verified(trace(model, (x,)))
    predictor = predictor_for(network.ops, load_profile("jetson"))
    rng, count = np.random.default_rng(0), 50_000
    widths = np.stack(
        [rng.integers(1, group.size + 1, count) for group in network.groups], axis=1
    ).astype(np.int64)
    keep = np.ones((count, len(network.blocks)), bool)
    seconds = median_seconds(lambda: predictor.predict(widths, keep), repeats=5)
    return (
        "latency predictions per second, ResNet-50",
        f"{count / seconds:,.0f}",
        "cannot",
        ">= 100,000",
    )


class _Instant:
    """An evaluator that costs nothing, so that only the overhead is left."""

    def __call__(self, candidate: Candidate) -> Evaluation:
        return Evaluation(
            candidate=candidate,
            loss=1.0,
            accuracy=0.5,
            latency_ms=1.0,
            macs=1,
            params=1,
            seconds=0.0,
            status="complete",
            reason="",
        )

    def failed(self, candidate: Candidate, reason: str) -> Evaluation:
        raise RuntimeError(reason)


def _tune_overhead() -> tuple[str, str, str, str]:
    network = verified(trace(SmallResNet(20), (torch.randn(1, 3, 32, 32),)))
    space = build_space(network.groups, network.blocks, load_space_settings("default"), alignment=1)
    predictor = predictor_for(network.ops, load_profile("jetson"))
    problem = Problem(space, predictor.predict, None)
    times: list[float] = []
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=build_sampler("random", problem, seed=0)
    )
    driver = StudyDriver(
        study,
        problem,
        limits=Limits(120),
        listeners=[lambda _: times.append(time.perf_counter())],
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tune.run(driver, _Instant(), workers=2, scratch=Path(folder) / "ray")
    steady = np.diff(times)[20:]
    return (
        "Ray Tune overhead per trial, reused actors (start-up)",
        f"{np.mean(steady) * 1e3:.0f} ms ({times[0] - start:.1f} s)",
        "has none",
        "<= 250 ms",
    )


if __name__ == "__main__":
    main()
