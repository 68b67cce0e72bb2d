"""ResNet-56 at half of its MACs without a gradient step, and where the search took them from.

`AUTOPRUNE_SHARED=... python benchmarks/bm_half_macs.py` searches with the default sampler, MACs as
the cost and half of the unpruned network's as the budget. The first test images are the search's;
the best network by them is scored on the others, which the search never saw. Calibration images are
training images. Writes `results/bm_half_macs.md` and, per layer, `results/bm_half_macs.svg`.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import torch
from common import RESULTS, write_result
from realise_subjects import SHARED
from search_bench import MACS, Bench, BenchSettings

from autoprune.strategy.problem import Problem
from autoprune.strategy.registry import build_sampler
from autoprune.strategy.space import Candidate

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "autoprune"

NETWORK = "ResNet-56"


def main() -> None:
    """Search in every space, score what was found, draw the best."""
    options = _options()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows, drawn = [], {}
    for space in options.spaces:
        settings = BenchSettings(
            network=NETWORK,
            device=MACS,
            shared=options.shared,
            calibration=options.calibration,
            images=options.images,
            unseen=10_000 - options.images,
            space=space,
        )
        bench = Bench(settings, cache=Path("runs") / "bm_search.sqlite")
        trials, seconds = _searched(bench, options.trials)
        best = trials["candidate"][trials["loss"].idxmin()]
        loss, accuracy, _ = bench.score(best)
        unseen_loss, unseen_accuracy, _ = bench.score(best, unseen=True)
        dense = bench.problem.space.dense()
        rows.append(
            {
                "space": space,
                "trials": options.trials,
                "calibration images": options.calibration,
                "search images": options.images,
                "MACs, share": round(_macs(bench, best) / _macs(bench, dense), 4),
                "search loss": round(loss, 4),
                "search accuracy": f"{100 * accuracy:.2f} %",
                "unseen loss": round(unseen_loss, 4),
                "unseen accuracy": f"{100 * unseen_accuracy:.2f} %",
                "unpruned, unseen": f"{100 * bench.score(dense, unseen=True)[1]:.2f} %",
                "minutes": round(seconds / 60, 1),
            }
        )
        print(rows[-1], flush=True)
        drawn[space] = _kept(bench, best)
    write_result(
        "bm_half_macs",
        pd.DataFrame(rows),
        command="python benchmarks/bm_half_macs.py",
        packages=["torch", "optuna"],
    )
    _plot(drawn)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder that holds bench_data")
    parser.add_argument("--spaces", nargs="+", default=["width_only"])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--calibration", type=int, default=2048)
    parser.add_argument("--images", type=int, default=4000, help="search images")
    return parser.parse_args()


def _searched(bench: Bench, trials: int) -> tuple[pd.DataFrame, float]:
    """Return the trials of one search within half of the MACs, and the seconds it took."""
    start = time.perf_counter()
    half = dataclasses.replace(bench.with_damage("knapsack"), budget_ms=bench.problem.dense_ms / 2)
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.sampler = build_sampler("knapsack", half, seed=0)
    _add_dense(study, bench, half)
    rows = []
    for number in range(trials):
        trial = study.ask(half.space.distributions())
        candidate = half.space.snap(half.space.candidate(trial.params))
        loss, accuracy, _ = bench.score(candidate)
        study.tell(trial, [loss, float(half.latency_ms([candidate])[0])])
        rows.append((loss, accuracy, candidate))
        print(number, round(loss, 4), accuracy, flush=True)
    found = pd.DataFrame(rows, columns=["loss", "accuracy", "candidate"])
    return found, time.perf_counter() - start


def _add_dense(study: optuna.Study, bench: Bench, problem: Problem) -> None:
    space = problem.space
    study.add_trial(
        optuna.trial.create_trial(
            params=space.params(space.dense()),
            distributions=space.distributions(),
            values=[bench.score(space.dense())[0], problem.dense_ms],
            user_attrs={"dense": True},
        )
    )


def _macs(bench: Bench, candidate: Candidate) -> float:
    """Return millions of multiply-accumulates."""
    return float(bench.problem.latency_ms([candidate])[0])


def _kept(bench: Bench, candidate: Candidate) -> pd.Series:
    """Return the share of channels that stay of each convolution, 0 where its block is gone."""
    model = bench.evaluator.build(candidate)
    before = {
        name: module.out_channels
        for name, module in bench.network.model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    after = {
        name: module.out_channels
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    return pd.Series({name: after.get(name, 0) / width for name, width in before.items()})


def _plot(drawn: dict[str, pd.Series]) -> None:
    """Draw the share of channels that stay, layer by layer."""
    figure, panels = plt.subplots(
        len(drawn), 1, figsize=(11, 3 * len(drawn)), layout="constrained", squeeze=False
    )
    for panel, (space, kept) in zip(panels[:, 0], drawn.items(), strict=True):
        inner = np.array([name.endswith("conv1") and "." in name for name in kept.index])
        places = np.arange(len(kept))
        for chosen, label, colour in (
            (inner, "inside a block", "tab:red"),
            (~inner, "on the residual stream", "tab:blue"),
        ):
            panel.bar(places[chosen], 100 * kept[chosen], color=colour, label=label)
        panel.set(ylabel="channels that stay, %", title=f"search space {space}", ylim=(0, 105))
        panel.legend(fontsize=8, loc="lower right")
    panels[-1, 0].set(xlabel="convolution, from the input on")
    figure.savefig(RESULTS / "bm_half_macs.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
