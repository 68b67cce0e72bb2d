"""Copies measurements from benchmarks/results into the tables of README and docs.

    python docs/tables.py            # writes the pages
    python docs/tables.py --check    # says which are out of date, and changes nothing

A table stands between ``<!-- table: NAME, by docs/tables.py -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_TABLE = re.compile(r"(<!-- table: (\w+), by docs/tables\.py -->\n).*?(<!-- end -->)", re.DOTALL)

#: Networks of bm_realise with the measurement that is shown: images seen, images tested (0: all).
_REALISED = {
    "ResNet-56": ("ResNet-56, CIFAR-10, half of the MACs", 512, 0),
    "ResNet-20": ("ResNet-20, CIFAR-10, half of the inner channels", 512, 2000),
    "MobileNetV1-0.5": ("MobileNetV1 0.5, a quarter of all channels, no BatchNorm", 256, 0),
    "stories260K": ("stories260K, a quarter of heads and MLP, perplexity", 512, 0),
}
_WAYS = {
    "slice": "cut",
    "statistics": "statistics repaired",
    "merge": "merged",
    "reconstruct": "reconstructed",
}
_NEEDS = {
    "nothing": "the weights alone",
    "inputs": "unlabelled images",
    "labels": "labels and gradients",
}


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def parsed(name: str) -> pd.DataFrame:
    """Return the first table of a page of results, every cell as its text."""
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
    width = len(rows[0])
    return pd.DataFrame([row for row in rows[2:] if len(row) == width], columns=rows[0])


def realised() -> pd.DataFrame:
    """Return the rows of bm_realise that are shown, and what each criterion reads."""
    from autoprune.pruning.criterion import CRITERIA

    table = pd.read_csv(RESULTS / "bm_realise.csv")
    shown = [
        table[(table.network == name) & (table.images == images) & (table.tested == tested)]
        for name, (_, images, tested) in _REALISED.items()
    ]
    rows = pd.concat(shown)
    needs = {name: getattr(CRITERIA[name], "needs", "") for name in CRITERIA.names()}
    return rows.assign(needs=rows.criterion.map(needs))


def written(value: float, metric: str) -> str:
    """Return a score with its unit."""
    return f"{value:.1f} %" if metric == "accuracy" else f"{value:.2f}"


def repairs() -> str:
    """Return what the best criterion of each repair reaches."""
    rows = []
    for (network, metric), cells in realised().groupby(["network", "metric"], sort=False):
        best = cells.groupby("realise").value.agg("max" if metric == "accuracy" else "min")
        rows.append(
            [_REALISED[str(network)][0], *(written(best[way], metric) for way in ["dense", *_WAYS])]
        )
    return markdown(["network, what is cut", "unpruned", *_WAYS.values()], rows)


def reads() -> str:
    """Return the median and best criterion by what criteria read, for each repair."""
    rows = []
    table = realised()
    for (network, metric), cells in table.groupby(["network", "metric"], sort=False):
        for need, words in _NEEDS.items():
            some = cells[(cells.needs == need) & (cells.criterion != "random")]
            values = [some[some.realise == way].value for way in _WAYS]
            best = ["max" if metric == "accuracy" else "min"] * len(values)
            rows.append(
                [
                    network,
                    f"{words} ({some.criterion.nunique()})",
                    *(
                        f"{written(v.median(), metric)} ({written(v.agg(b), metric)})"
                        for v, b in zip(values, best, strict=True)
                    ),
                ]
            )
    return markdown(["network", "criteria that read", *_WAYS.values()], rows)


#: Strategies that README compares, by their names in the results.
_STRATEGIES = {
    "knapsack": "knapsack (default)",
    "pso": "particle swarms",
    "pso_warm9": "particle swarms after nine anchors of the default",
    "cmaes": "CMA-ES",
    "cmaes_warm9": "CMA-ES after nine anchors of the default",
    "tpe": "TPE",
    "random": "random",
    "uniform": "uniform ratios",
    "nsga2": "NSGA-II",
}


def searches() -> str:
    """Return the hypervolume of the loss by evaluations of a few strategies on a ResNet-20."""
    table = parsed("bm_search.md")
    counts = evaluations(table)
    some = table[table.run.str.contains("resnet-?20_raspberry_pi_4", regex=True)]
    rows = some.set_index("sampler")
    return markdown(
        ["strategy", *(name.split()[1] for name in counts)],
        [
            [words, *(rows.loc[name, count].split(" ±")[0] for count in counts)]
            for name, words in _STRATEGIES.items()
            if name in rows.index
        ],
    )


def evaluations(table: pd.DataFrame) -> list[str]:
    """Return the columns with the hypervolume of the loss, fewest evaluations first."""
    counts = [name for name in table.columns if name.startswith("loss ")]
    return sorted(counts, key=lambda name: int(name.split()[1]))


def strategies() -> str:
    """Return the hypervolume of the loss by evaluations, all strategies of all networks."""
    table = parsed("bm_search.md")
    counts = evaluations(table)
    rows = [
        [row["run"].split("_reconstruct")[0], f"`{row['sampler']}`", row["seeds"]]
        + [row[name].split(" ±")[0] for name in counts]
        for _, row in table.iterrows()
    ]
    return markdown(["search", "strategy", "seeds", *(name.split()[1] for name in counts)], rows)


def proxies() -> str:
    """Return how well what is cheap ranks candidates by their accuracy after fine-tuning."""
    table = parsed("bm_proxies.md").set_index("proxy")
    names = {
        **{f"loss, {way}": f"loss, {words}" for way, words in _WAYS.items()},
        "accuracy, reconstruct": "accuracy, reconstructed",
        "summed damage": "summed damage, nothing evaluated",
        "MACs": "MACs",
        "parameters": "parameters",
    }
    rows = [
        [words, *table.loc[name, ["Spearman, accuracy", "realise s", "evaluate s"]]]
        for name, words in names.items()
    ]
    return markdown(["ranked by", "correlation (90 % interval)", "repair s", "evaluation s"], rows)


def recovery() -> str:
    """Return accuracies before and during a short fine-tuning, ours and torch-pruning's."""
    table = parsed("bm_recovery.md")
    steps = [name for name in table.columns if name.startswith("step ")]
    columns = ["fewer MACs", "network", "seeds", *steps]
    return markdown(columns, table[columns].to_numpy().tolist())


def rates() -> str:
    """Return accuracies after a short fine-tuning by learning rate and BatchNorm's statistics."""
    lines = (RESULTS / "bm_recovery.md").read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| peak learning rate"))
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[first:]
             if line.startswith("|")]  # fmt: skip
    return markdown(cells[0], cells[2:])


def measured() -> str:
    """Return predicted and measured latency of unpruned networks and the best in half of that."""
    table = parsed("bm_verify.md")
    shown = table[(table.point == "unpruned") | table.point.str.endswith("(best)")]
    columns = ["predicted ms", "measured ms", "speed-up", "int8 ms", "int8 speed-up"]
    rows = [
        [row["network"], row["point"].split(" ")[0].replace("trial", "pruned"), *row[columns]]
        for _, row in shown.iterrows()
    ]
    return markdown(["network", "", *columns], rows)


def both() -> str:
    """Return what autoprune and torch-pruning take for the same steps."""
    table = parsed("bm_pipeline.md")
    columns = ["what", "autoprune", "torch-pruning"]
    return markdown(columns, table[columns].to_numpy().tolist())


def latencies() -> str:
    """Return errors of predicted latency on held-out networks, ours and by MACs."""
    table = parsed("bm_latency.md").set_index("profile")
    names = [name for name in table.index if name.startswith("jetson") and "ncnn" not in name]
    columns = ["measurements", "held-out error", "MACs alone", "rank correlation"]
    return markdown(["profile", *columns], [[f"`{n}`", *table.loc[n, columns]] for n in names])


TABLES: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        repairs,
        reads,
        searches,
        strategies,
        proxies,
        latencies,
        recovery,
        rates,
        measured,
        both,
    )
}


def filled(text: str) -> str:
    """Return a page with its tables as the results have them."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with ``--check`` only name those that are out of date."""
    stale = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale += 1
            print(f"{page.relative_to(ROOT)}: {'out of date' if arguments else 'written'}")
            if not arguments:
                page.write_text(new, encoding="utf-8")
    return int(bool(arguments) and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
