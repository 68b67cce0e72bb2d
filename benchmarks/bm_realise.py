"""What pruned networks are worth without a gradient step, by criterion and realisation.

`AUTOPRUNE_SHARED=... python benchmarks/bm_realise.py` measures every cell that
`benchmarks/results/bm_realise.csv` does not hold yet, and writes `bm_realise.md` beside it. Which
groups of a network are cut and how far is in `realise_subjects.py`; the channels inside every block
of ResNet-56 are halved, which is half of its MACs. Name subjects, criteria and realisations to
measure a few cells only, with `--tested` on fewer test samples. Seconds are of one candidate, after
a preparation that all share.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from common import RESULTS, write_result
from realise_subjects import SHARED, SUBJECTS, Subject, load_subject

from autoprune.pruning.criterion import CRITERIA, build_criterion
from autoprune.pruning.realiser import REALISERS, build_realiser

CELLS = RESULTS / "bm_realise.csv"
KEY = ["network", "criterion", "realise", "images", "tested"]
ORDER = ["slice", "statistics", "merge", "reconstruct"]


def main() -> None:
    """Measure the cells that are asked for and missing; write all."""
    options = _options()
    torch.set_num_threads(options.threads)
    for name in options.subjects:
        _measure(name, options)
    if not options.no_table:
        write_result(
            "bm_realise",
            _table(pd.read_csv(CELLS)),
            command="python benchmarks/bm_realise.py",
            packages=["torch"],
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default=SHARED, type=Path, help="folder that holds bench_data")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--criteria", nargs="+", default=CRITERIA.names())
    parser.add_argument("--realise", nargs="+", default=ORDER, choices=REALISERS.names())
    parser.add_argument("--images", type=int, default=512, help="calibration samples")
    parser.add_argument("--tested", type=int, default=0, help="most test samples, 0 for all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="measure cells that are there too")
    parser.add_argument("--no-table", action="store_true", help="only measure")
    return parser.parse_args()


def _measure(name: str, options: argparse.Namespace) -> None:
    """Measure the missing cells of one network."""
    wanted = [("dense", "dense")] + [(c, r) for c in options.criteria for r in options.realise]
    if not options.again:
        known = _known(name, options)
        wanted = [cell for cell in wanted if cell not in known]
    if not wanted:
        return
    subject = load_subject(name, options.shared)
    batches = subject.task.calibration(options.images)
    tested = options.tested or None
    if ("dense", "dense") in wanted:
        score = subject.score(subject.model, tested=tested)
        _store(subject, "dense", "dense", options, score, 0.0, 0.0)
    realisers = {}
    for realise in dict.fromkeys(r for _, r in wanted if r != "dense"):
        start = time.perf_counter()
        realiser = build_realiser(realise, subject.network, batches)
        realisers[realise] = realiser, time.perf_counter() - start
    for criterion in dict.fromkeys(c for c, _ in wanted if c != "dense"):
        plan = subject.plan_for(build_criterion(criterion).score(subject.network, batches))
        for realise in [r for c, r in wanted if c == criterion]:
            realiser, prepared = realisers[realise]
            start = time.perf_counter()
            pruned = realiser(plan)
            seconds = time.perf_counter() - start
            score = subject.score(pruned, tested=tested)
            _store(subject, criterion, realise, options, score, prepared, seconds)


def _known(name: str, options: argparse.Namespace) -> set[tuple[str, str]]:
    if not CELLS.is_file():
        return set()
    cells = pd.read_csv(CELLS)
    here = (cells["network"] == name) & (cells["images"] == options.images)
    here &= cells["tested"] == options.tested
    return set(zip(cells["criterion"][here], cells["realise"][here], strict=True))


def _store(
    subject: Subject,
    criterion: str,
    realise: str,
    options: argparse.Namespace,
    score: dict[str, str | float],
    prepared: float,
    seconds: float,
) -> None:
    """Add a cell to the file, in place of an older one; print it."""
    new = pd.DataFrame(
        {
            "network": [subject.name], "criterion": [criterion], "realise": [realise],
            "images": [options.images], "tested": [options.tested], "metric": [score["metric"]],
            "value": [round(float(score["value"]), 3)], "prepare_s": [round(prepared, 2)],
            "seconds": [round(seconds, 3)], "threads": [options.threads],
        }
    )  # fmt: skip
    cells = pd.concat([pd.read_csv(CELLS), new]) if CELLS.is_file() else new
    cells = cells.drop_duplicates(KEY, keep="last").sort_values(KEY)
    RESULTS.mkdir(exist_ok=True)
    cells.to_csv(CELLS, index=False, lineterminator="\n")
    told = f"{score['value']:.2f}, {prepared:.1f} + {seconds:.2f} s"
    print(f"{subject.name} {criterion} {realise}: {told}", flush=True)


def _table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network and criterion, a column per realisation: value (seconds)."""
    rows = []
    for (name, images, tested), part in cells.groupby(["network", "images", "tested"]):
        dense = part["value"][part["criterion"] == "dense"]
        for criterion, found in part[part["criterion"] != "dense"].groupby("criterion"):
            of = found.set_index("realise")
            row = {
                "network": name,
                "calibration": images,
                "tested": tested or "all",
                "metric": found["metric"].iloc[0],
                "dense": f"{dense.iloc[0]:.2f}" if len(dense) else "",
                "criterion": criterion,
            }
            for realise in ORDER:
                row[f"{realise} (s)"] = (
                    f"{_short(of['value'][realise])} ({of['seconds'][realise]:.2f})"
                    if realise in of.index
                    else ""
                )
            rows.append(row)
    return pd.DataFrame(rows)


def _short(value: float) -> str:
    """Return two decimals, or four digits of what is large."""
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
