"""What ending evaluations early saves, and whether it costs a network of the front.

`AUTOPRUNE_SHARED=... python benchmarks/bm_racing.py` searches twice with the same seed, with and
without racing, and writes `benchmarks/results/bm_racing.md`. The CIFAR-10 checkpoint has learned
its training images by heart, so its search scores 2048 test images. The sampler `random` proposes
the same networks whatever their scores, so its two searches differ in racing alone; a cache spares
the second search what the first has scored. Time is that of the processor: of making a network
with its BatchNorm statistics, and of scoring 256 images, each the least of three.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from common import write_result

from autoprune.evaluation import Evaluator
from autoprune.run import Run, RunSettings
from autoprune.run.pipeline import make_evaluator
from autoprune.strategy.space import Candidate
from autoprune.tasks.base import run_batches
from autoprune.tasks.cifar10 import cifar10
from autoprune.tasks.classification import ClassificationTask

SEED, DEVICE = 0, "raspberry_pi_4_ncnn"


def main() -> None:
    """Search, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("AUTOPRUNE_SHARED", Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--shared", default=default, help="folder that holds bench_data")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(options.shared) / "bench_data"
    cifar = {
        "model": f"{data / 'networks.py'}:cifar_resnet(20)",
        "weights": str(data / "cifar10_resnet20.safetensors"),
        "data": None,
    }
    rows = []
    for sampler in options.samplers:
        given = {"device": DEVICE, "sampler": sampler, "trials": options.trials, "seed": SEED}
        rows.append(_row("digits, ResNet-20, 360 images", given, None))
        rows.append(_row("CIFAR-10, ResNet-20, 2048 images", given | cifar, _cifar(data)))
    write_result(
        "bm_racing",
        pd.DataFrame(rows),
        command="AUTOPRUNE_SHARED=... python benchmarks/bm_racing.py",
        packages=["torch", "optuna"],
    )


def _cifar(data: Path) -> ClassificationTask:
    task = cifar10(str(data), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    splits = {"training": task.training, "search": task.test, "test": task.test}
    return ClassificationTask("cifar10", 10, **splits)


def _row(name: str, given: dict[str, object], task: ClassificationTask | None) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        given = given | {"executor": "inline", "cache": folder}
        (whole, times), (raced, _) = (
            _trials(given | {"racing": racing}, task) for racing in (False, True)
        )
    build, images = times
    seconds = [
        len(trials) * build + trials["samples"].sum() / 256 * images for trials in (whole, raced)
    ]
    screened = set(raced.loc[raced["status"] == "screened", "number"])
    front = whole.loc[whole["on_front"], "number"]
    paired = given["sampler"] == "random"
    return {
        "network": name,
        "sampler": given["sampler"],
        "stopped early": f"{len(screened)} of {given['trials']}",
        "making a network": f"{1e3 * build:.0f} ms",
        "256 images": f"{1e3 * images:.0f} ms",
        "images scored": f"{raced['samples'].sum() / whole['samples'].sum():.0%}",
        "evaluation time": f"{seconds[1] / seconds[0]:.0%}",
        "front without racing": len(front),
        "of it stopped": len(screened & set(front)) if paired else "other networks",
        "hypervolume without": f"{whole['hypervolume'].iloc[-1]:.4f}",
        "hypervolume with": f"{raced['hypervolume'].iloc[-1]:.4f}",
    }


def _trials(
    settings: dict[str, object], task: ClassificationTask | None
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Return the trials of a search, and seconds to make a network and to score 256 images."""
    with tempfile.TemporaryDirectory() as folder:
        checked = RunSettings.checked(settings)
        run = Run.create(checked, output=Path(folder) / "run", task=task, say=print)
        run.execute(say=print)
        trials = pd.read_parquet(run.directory.path / "trials.parquet")
        return trials, _times(make_evaluator(checked, run.prepared))


def _times(evaluator: Evaluator) -> tuple[float, float]:
    space, task = evaluator.problem.space, evaluator.task
    candidate = space.snap(Candidate((0.4,) * len(space.dimensions), (False,) * len(space.blocks)))
    model = evaluator.build(candidate)
    batches = list(task.batches("search", 0, 256))
    return (
        _seconds(lambda: evaluator.build(candidate)),
        _seconds(lambda: run_batches(model, batches, task.sample_scores)),
    )


def _seconds(action: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return min(found)


if __name__ == "__main__":
    main()
