"""Every sampler on real networks with one evaluator: hypervolume by number of evaluations.

`AUTOPRUNE_SHARED=... python benchmarks/bm_search.py` makes the runs that `results/search/` does not
hold yet, then writes `results/bm_search.md`. A run is one sampler with one seed on one network for
one device, cold or after anchors of the knapsack; its trials are one CSV file. Evaluations are
deterministic and kept in a cache, so that samplers which propose the same candidate get the same
scores without waiting. The front of every run is scored again on images that no search saw.

The loss is that at a network's best temperature: these checkpoints are far surer than they are
right, and their plain loss falls where blocks are dropped although accuracy falls too.

What a strategy finds out about the network before its first evaluation is not counted as one; its
seconds stand beside those of an evaluation.

Hypervolume of the error is the mean over all budgets up to the dense latency of the best accuracy
within that budget. That of the loss is the mean of log(C / L) / log(C / L0) with L the lowest loss
within the budget, L0 the dense network's and C that of guessing: 1 is as good as the dense
network everywhere, 0 is no better than guessing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import torch
from common import RESULTS, write_result
from jaxtyping import Float
from realise_subjects import SHARED
from search_bench import Bench, BenchSettings

from autoprune.strategy.pareto import hypervolume, pareto_mask
from autoprune.strategy.registry import SAMPLERS, build_sampler, wanted_damage
from autoprune.strategy.space import Candidate

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "autoprune"

CHECKPOINTS = (10, 20, 40, 100)
#: What stands out in plots, and how all others are drawn.
COLOURS = {
    "knapsack": "tab:red",
    "cmaes": "tab:blue",
    "tpe": "tab:green",
    "random": "tab:orange",
    "uniform": "black",
}
FAINT = {"color": "0.8", "zorder": 1}
DEVICES = ("raspberry_pi_4_ncnn", "jetson_nano", "cpu_x86")


def main() -> None:
    """Make the missing runs, then the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for network in options.networks:
        for device in options.devices:
            wanted = [
                (sampler, seed, warm)
                for seed in range(options.seeds)
                for warm in options.warm
                for sampler in options.samplers
                if not _path(network, device, sampler, seed, warm, options).exists()
            ]
            if wanted:
                _runs(network, device, wanted, options)
    if not options.no_table:
        _table(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder that holds bench_data")
    parser.add_argument("--networks", nargs="+", default=["ResNet-20"])
    parser.add_argument("--devices", nargs="+", default=list(DEVICES))
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS.names())
    parser.add_argument("--warm", nargs="+", type=int, default=[0], help="anchors before each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--realise", default="reconstruct")
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--images", type=int, default=512, help="search images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-table", action="store_true", help="only make runs")
    return parser.parse_args()


def _path(
    network: str, device: str, sampler: str, seed: int, warm: int, options: argparse.Namespace
) -> Path:
    started = f"_warm{warm}" if warm else ""
    folder = RESULTS / "search" / f"{network.lower()}_{device}_{options.realise}"
    return folder / f"{sampler}{started}_{seed}.csv"


def _runs(
    network: str, device: str, wanted: list[tuple[str, int, int]], options: argparse.Namespace
) -> None:
    settings = BenchSettings(
        network=network,
        device=device,
        shared=options.shared,
        realise=options.realise,
        calibration=options.calibration,
        images=options.images,
    )
    bench = Bench(settings, cache=Path("runs") / "bm_search.sqlite")
    for sampler, seed, warm in wanted:
        path = _path(network, device, sampler, seed, warm, options)
        try:
            trials = _run(bench, sampler, seed, warm, options.trials)
        except Exception as error:  # noqa: BLE001 - one sampler's fault must not stop the others
            print(f"{network} {sampler} {seed}: {type(error).__name__}: {error}", flush=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        trials.to_csv(path, index=False, lineterminator="\n", float_format="%.6g")
        volumes = _volumes(trials, bench.problem.dense_ms)
        print(path.parent.name, path.stem, volumes.round(4).to_dict("list"), flush=True)


def _run(bench: Bench, sampler: str, seed: int, warm: int, trials: int) -> pd.DataFrame:
    """Return the trials of one search, the dense network first."""
    problem = bench.with_damage(sampler)
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.sampler = build_sampler(sampler, problem, seed=seed, warm_start=warm)
    distributions = problem.space.distributions()
    rows = [_dense_row(bench, study)]
    for _ in range(trials):
        start = time.perf_counter()
        trial = study.ask(distributions)
        proposing = time.perf_counter() - start
        candidate = problem.space.snap(problem.space.candidate(trial.params))
        loss, accuracy, seconds = bench.score(candidate)
        latency_ms = float(problem.latency_ms([candidate])[0])
        trial.set_user_attr("accuracy", accuracy)
        study.tell(trial, [loss, latency_ms])
        rows.append((loss, accuracy, latency_ms, proposing, seconds, candidate))
    columns = ["loss", "accuracy", "latency_ms", "proposing_s", "evaluating_s", "candidate"]
    frame = pd.DataFrame(rows, columns=columns)
    for position in _front(frame):
        loss, accuracy, _ = bench.score(frame["candidate"][position], unseen=True)
        frame.loc[position, ["unseen_loss", "unseen_accuracy"]] = loss, accuracy
    frame["candidate"] = frame["candidate"].map(bench.coded)
    frame["guess_loss"] = bench.guess_loss
    if wanted_damage(sampler) or warm:
        frame["preparing_s"] = round(bench.preparing_s(sampler), 2)
    return frame


def _dense_row(
    bench: Bench, study: optuna.Study
) -> tuple[float, float, float, float, float, Candidate]:
    space = bench.problem.space
    dense = space.dense()
    loss, accuracy, seconds = bench.score(dense)
    study.add_trial(
        optuna.trial.create_trial(
            params=space.params(dense),
            distributions=space.distributions(),
            values=[loss, bench.problem.dense_ms],
            user_attrs={"dense": True, "accuracy": accuracy},
        )
    )
    return loss, accuracy, bench.problem.dense_ms, 0.0, seconds, dense


def _volumes(trials: pd.DataFrame, dense_ms: float) -> pd.DataFrame:
    """Return hypervolumes of loss and error after each number of evaluations."""
    latency = trials["latency_ms"].to_numpy()
    quality = {"loss": _quality(trials), "error": trials["accuracy"].to_numpy()}
    rows = []
    for count in [n for n in CHECKPOINTS if n < len(trials)]:
        part = slice(0, count + 1)
        rows.append(
            {
                "evaluations": count,
                **{
                    name: 100 * hypervolume(values[part], latency[part], dense_ms=dense_ms)
                    for name, values in quality.items()
                },
            }
        )
    return pd.DataFrame(rows)


def _quality(trials: pd.DataFrame) -> Float[np.ndarray, " trials"]:
    """Return 1 for the first loss, the dense network's, 0 for one of guessing."""
    loss, guess = trials["loss"].to_numpy(), trials["guess_loss"].iloc[0]
    return np.clip(np.log(guess / loss) / np.log(guess / loss[0]), 0.0, 1.0)


def _unseen(trials: pd.DataFrame) -> float:
    """Return the hypervolume of the error of the front on images that the search never saw."""
    return 100 * hypervolume(
        trials["unseen_accuracy"].to_numpy(),
        trials["latency_ms"].to_numpy(),
        dense_ms=trials["latency_ms"].iloc[0],
    )


def _front(trials: pd.DataFrame) -> Float[np.ndarray, " points"]:
    """Return the positions of the trials on the front of accuracy."""
    return np.flatnonzero(
        pareto_mask(trials["accuracy"].to_numpy(), trials["latency_ms"].to_numpy())
    )


def _table(options: argparse.Namespace) -> None:
    """Write mean and spread over seeds of every sampler, best first."""
    rows = []
    folders = sorted(path for path in (RESULTS / "search").iterdir() if path.is_dir())
    for folder in folders:
        runs: dict[str, list[pd.DataFrame]] = {}
        for path in sorted(folder.glob("*.csv")):
            runs.setdefault(path.stem.rpartition("_")[0], []).append(pd.read_csv(path))
        rows += [_row(folder.name, name, found) for name, found in runs.items()]
    frame = pd.DataFrame(rows).sort_values(["run", "_order"], ascending=[True, False])
    write_result(
        "bm_search",
        frame.drop(columns="_order").fillna(""),
        command="python benchmarks/bm_search.py",
        packages=["torch", "optuna"],
    )
    for folder in folders:
        _plot(folder)


def _plot(folder: Path) -> None:
    """Draw the hypervolume of the loss by evaluations, and the fronts after the last one."""
    figure, (growth, front) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    runs: dict[str, list[pd.DataFrame]] = {}
    for path in sorted(folder.glob("*.csv")):
        runs.setdefault(path.stem.rpartition("_")[0], []).append(pd.read_csv(path))
    for name, found in runs.items():
        dense_ms = found[0]["latency_ms"].iloc[0]
        counts = np.arange(1, min(map(len, found)))
        grown = np.mean([[_volume(run, int(n), dense_ms) for n in counts] for run in found], axis=0)
        style = {"color": COLOURS.get(name), "zorder": 3} if name in COLOURS else FAINT
        growth.plot(counts, grown, label=name if name in COLOURS else None, **style)
        if name in COLOURS:
            best = found[0].iloc[_front(found[0])].sort_values("latency_ms")
            front.step(
                best["latency_ms"], 100 * best["accuracy"], where="post", label=name, **style
            )
    growth.set(xlabel="evaluations", ylabel="hypervolume of the loss, %")
    front.set(xlabel="predicted latency, ms", ylabel="accuracy on search images, %")
    growth.legend(title="others in grey", fontsize=8)
    front.legend(title="fronts of the first seed", fontsize=8)
    figure.suptitle(folder.name.replace("_", " "))
    figure.savefig(folder.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def _volume(trials: pd.DataFrame, count: int, dense_ms: float) -> float:
    """Return the hypervolume of the loss after so many evaluations."""
    quality, latency = _quality(trials), trials["latency_ms"].to_numpy()
    return 100 * hypervolume(quality[: count + 1], latency[: count + 1], dense_ms=dense_ms)


def _row(folder: str, name: str, runs: list[pd.DataFrame]) -> dict[str, object]:
    """Return the means over seeds of one sampler in one folder."""
    row: dict[str, object] = {"run": folder, "sampler": name, "seeds": len(runs)}
    volumes = [_volumes(trials, trials["latency_ms"].iloc[0]) for trials in runs]
    shortest = min(len(volume) for volume in volumes)
    for kind in ("loss", "error"):
        values = np.array([volume[kind].to_numpy()[:shortest] for volume in volumes])
        for column, count in enumerate(volumes[0]["evaluations"][:shortest]):
            mean, spread = values[:, column].mean(), values[:, column].std()
            row[f"{kind} {count}"] = f"{mean:.1f} ± {spread:.1f}"
        if kind == "loss":
            row["_order"] = float(values[:, -1].mean()) if shortest else 0.0
    row["unseen error"] = f"{np.mean([_unseen(trials) for trials in runs]):.1f}"
    proposing = [trials["proposing_s"].iloc[1:].median() for trials in runs]
    row["ms per proposal"] = f"{1000 * np.mean(proposing):.0f}"
    if "preparing_s" in runs[0]:
        row["s before"] = f"{runs[0]['preparing_s'].iloc[0]:.0f}"
    row["ms per evaluation"] = f"{1000 * np.mean([t['evaluating_s'].mean() for t in runs]):.0f}"
    return row


if __name__ == "__main__":
    main()
