"""Which loss on the search images tells best how often a pruned network is wrong on others.

`AUTOPRUNE_SHARED=... python benchmarks/bm_metric.py` takes candidates that searches of
`bm_search.py` proposed (`results/search/`), scores each on the search images by its loss as it is,
by that at its best temperature and by its error, and correlates these with the error on images that
no search saw. Writes `results/bm_metric.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from common import RESULTS, write_result
from realise_subjects import SHARED
from scipy.stats import spearmanr
from search_bench import Bench, BenchSettings

#: Of networks that are right this often or more; of the others nobody would take any.
USEFUL = 0.7


def main() -> None:
    """Score candidates of each run, then correlate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder that holds bench_data")
    parser.add_argument("--network", default="ResNet-56")
    parser.add_argument("--device", default="jetson_nano")
    parser.add_argument("--samplers", nargs="+", default=["knapsack", "cmaes", "random"])
    parser.add_argument("--trials", type=int, default=26, help="the first ones of each search")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = BenchSettings(network=options.network, device=options.device, shared=options.shared)
    bench = Bench(settings, cache=Path("runs") / "bm_search.sqlite")
    folder = RESULTS / "search" / f"{settings.network.lower()}_{settings.device}_reconstruct"
    rows = []
    for sampler in options.samplers:
        trials = pd.read_csv(folder / f"{sampler}_0.csv")
        for coded in trials["candidate"][: options.trials]:
            model = bench.evaluator.build(bench.decoded(coded))
            plain, _ = bench.scores(model, unseen=False, calibrated=False)
            _, unseen = bench.scores(model, unseen=True)
            rows.append((plain, *bench.scores(model, unseen=False), unseen))
        print(sampler, len(rows), flush=True)
    frame = pd.DataFrame(rows, columns=["loss", "calibrated", "accuracy", "unseen"])
    table = []
    for name, part in {
        "all": frame,
        f"right on {100 * USEFUL:.0f} % or more": frame[frame["unseen"] >= USEFUL],
    }.items():
        wrong = 1.0 - part["unseen"]
        table.append(
            {
                "candidates": name,
                "number": len(part),
                "loss": round(float(spearmanr(part["loss"], wrong)[0]), 3),
                "calibrated loss": round(float(spearmanr(part["calibrated"], wrong)[0]), 3),
                "error": round(float(spearmanr(1.0 - part["accuracy"], wrong)[0]), 3),
            }
        )
        print(table[-1], flush=True)
    write_result(
        "bm_metric",
        pd.DataFrame(table),
        command="python benchmarks/bm_metric.py",
        packages=["torch", "scipy"],
    )


if __name__ == "__main__":
    main()
