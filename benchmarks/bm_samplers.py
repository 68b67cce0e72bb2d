"""Hypervolume of each sampler on the digits task at equal numbers of evaluations, several seeds.

`python benchmarks/bm_samplers.py` prints and writes `benchmarks/results/bm_samplers_digits.md`.
Hypervolume is the mean over all budgets up to the dense latency of the best search accuracy within
that budget, in per cent; the accuracies behind it are on the search split.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import write_result

import autoprune

CHECKPOINTS = (10, 20, 40, 60, 100)


def main() -> None:
    """Run every sampler with every seed, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samplers", nargs="+", default=["uniform", "random", "tpe", "nsga2"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--device", default="jetson")
    parser.add_argument("--budget-ms", type=float, default=None)
    arguments = parser.parse_args()
    checkpoints = [n for n in CHECKPOINTS if n <= arguments.trials]
    rows = []
    for sampler in arguments.samplers:
        curves = []
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                result = autoprune.search(
                    "digits",
                    "digits",
                    device=arguments.device,
                    budget_ms=arguments.budget_ms,
                    sampler=sampler,
                    seed=seed,
                    trials=arguments.trials,
                    output=Path(folder) / "run",
                )
                trials = pd.read_parquet(Path(folder) / "run" / "trials.parquet")
            values = trials["hypervolume"].to_numpy()
            at = [values[min(n, len(values) - 1)] for n in checkpoints]
            curves.append(at)
            print(sampler, seed, [f"{100 * v:.2f}" for v in at], len(result.front), flush=True)
        mean, spread = np.mean(curves, axis=0), np.std(curves, axis=0)
        rows.append(
            [
                sampler,
                *(f"{100 * m:.2f} ± {100 * s:.2f}" for m, s in zip(mean, spread, strict=True)),
            ]
        )
    frame = pd.DataFrame(rows, columns=["sampler", *(f"after {n}" for n in checkpoints)])
    write_result(
        "bm_samplers_digits",
        frame,
        command="python benchmarks/bm_samplers.py",
        packages=["torch", "optuna", "ray"],
    )


if __name__ == "__main__":
    main()
